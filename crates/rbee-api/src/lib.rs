//! What the four programs say to each other, and nothing else: ids, states,
//! requests, replies, error codes. Holds no I/O, no clock and no policy, so
//! that a conversation between two programs can be read in one file.

pub mod audit;
pub mod continuation;
pub mod error;
pub mod headers;
pub mod hive;
pub mod key;
pub mod limits;
pub mod model;
pub mod openai;
pub mod openapi;
pub mod pairing;
pub mod queen;
pub mod worker;
pub mod worker_exit;
