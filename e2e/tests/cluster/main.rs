//! The whole product from outside: four real programs, a user's commands, a
//! client's requests, an operator's signals.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has to fail"
)]

mod auth;
mod bad_input;
mod cold_start;
mod conformance;
mod faults;
mod observe;
mod streams;
