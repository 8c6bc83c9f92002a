//! The life of the process: what the command line asks for, done, and told as an exit code.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use queen_rbee::{Command, QueenError};
use rbee_home::{ExitStatus, report_error};

fn main() -> ExitCode {
    match Command::from_process().and_then(obey) {
        Ok(()) => ExitStatus::Success.into(),
        Err(error) => {
            let report = report_error(&error as &dyn Error, error.hint().as_deref());
            // Where standard error is gone, the exit code still tells.
            std::io::stderr().write_all(report.as_bytes()).ok();
            error.exit_status().into()
        }
    }
}

fn obey(command: Command) -> Result<(), QueenError> {
    let text = match command {
        Command::Serve(config) => return queen_rbee::serve(*config),
        Command::PrintRoutes => queen_rbee::route_listing(),
        Command::PrintOpenapi => queen_rbee::openapi_document(),
        Command::ValidateConfig(config) => {
            queen_rbee::check(&config)?;
            "the configuration is valid\n".to_owned()
        }
    };
    // A reader that goes away early has what it wanted.
    std::io::stdout().write_all(text.as_bytes()).ok();
    Ok(())
}
