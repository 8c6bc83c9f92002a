//! The real queen over real sockets, with a hive that does what the test says.

// The attribute tells clippy that helpers are test code, too.
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod fake_hive;
#[cfg(test)]
mod pair;
/// The identity provider of the tests, the same as that of the crate.
#[cfg(test)]
#[path = "../../../../crates/jwt-guardian/tests/tokens/signer.rs"]
mod signer;

#[cfg(test)]
mod cold;
#[cfg(test)]
mod continuing;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod jwt;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod life;
#[cfg(test)]
mod local_hive;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod silent;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod surface;
