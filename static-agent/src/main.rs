//! `dwell-agent`: what `dwell agent` does, and no more. `make agent` links it statically, so
//! that it runs on any Linux, whatever C library is there or none.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match words.split_first() {
        // Whoever starts an agent need not know which of the two programs it has.
        Some((first, rest)) if first == "agent" => dwell::agent::main(rest),
        _ => dwell::agent::main(&words),
    }
}
