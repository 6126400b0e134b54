//! `dwell-agent`: what `dwell agent` does, and no more. `make agent` links it statically, so
//! that it runs on any Linux, whatever C library is there or none.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_feature = "crt-static")]
    names::look_up_by_files_and_dns();
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

#[cfg(target_feature = "crt-static")]
mod names {
    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }

    /// Have hosts be looked up in `/etc/hosts` and by DNS, whatever `/etc/nsswitch.conf` says:
    /// for anything else that it may name, the C library in here would load parts of the
    /// host's own, which is another.
    pub fn look_up_by_files_and_dns() {
        let (database, services) = (c"hosts", c"files dns");
        // SAFETY: both are strings of C's, and no other thread looks up anything yet.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}
