//! `dwell`: the server, the agent and the command line in one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match words.split_first() {
        // Before anything else: an agent's start is part of every session's start.
        Some((first, rest)) if first == "agent" => dwell::agent::main(rest),
        _ => dwell::cli::main(),
    }
}
