//! The life of the process: arguments, socket, secrets, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use llm_worker_rbee::{Arguments, WorkerError, chain, launch};

fn main() -> ExitCode {
    match launch(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            error.exit_code()
        }
    }
}

/// Says on standard error what failed and what to do.
fn report(error: &WorkerError) {
    let written = writeln!(std::io::stderr(), "error: {}\nhint: {}", chain(error), error.hint());
    // Without a terminal or log there is nobody to tell.
    written.ok();
}
