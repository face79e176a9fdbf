//! Seals one stream of memory or of a disk; started by the agent, for nobody else.

use std::process::ExitCode;

fn main() -> ExitCode {
    match throughline_hypervisor::seal() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughline-seal: {error}");
            ExitCode::FAILURE
        }
    }
}
