//! The real `rbee` program against a queen that this process plays: what it sends, what it shows, how it ends.

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod fake_endpoint;
#[cfg(test)]
mod fake_queen;
#[cfg(test)]
mod program;
#[cfg(test)]
mod pty;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod listings;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod run;
#[cfg(test)]
mod start;
