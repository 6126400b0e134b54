//! The one binary: server, agent, command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("agent") => dwell::agent::main(args.get(2..).unwrap_or_default()),
        _ => ExitCode::FAILURE,
    }
}
