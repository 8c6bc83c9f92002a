//! What makes a signed token good, and every trick that does not.

// The attribute tells clippy that helpers are test code, too.
#[cfg(test)]
mod believing;
#[cfg(test)]
mod signer;
