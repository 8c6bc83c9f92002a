//! The life of the process: arguments, runtime, the command, the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match rbee_keeper::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return rbee_keeper::report_no_runtime(&cli, error),
    };
    let code = runtime.block_on(rbee_keeper::run(cli));
    // A thread that still reads the terminal or a pipe must not keep the process.
    runtime.shutdown_background();
    code
}
