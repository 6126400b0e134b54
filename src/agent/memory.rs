//! What an idle agent keeps in memory: little, since a host may have a thousand.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Let go of the code that starting took and waiting does not. The kernel maps it
/// again, from the file, where it is needed.
pub fn trim() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in maps.lines().filter_map(code) {
        let Some(start) = NonNull::new(std::ptr::without_provenance_mut::<c_void>(start)) else {
            continue;
        };
        // SAFETY: a private mapping of a file that may be executed and not written
        // has nothing in it that is not in the file.
        let _ = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
    }
}

/// The start and length of a mapping of code: `START-END r-xp … /PATH`.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && words.next_back()?.starts_with('/');
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    is_code.then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go() {
        let file = "/usr/bin/dwell";
        assert_eq!(
            code(&format!("1000-3000 r-xp 0 fe:00 1 {file}")),
            Some((0x1000, 0x2000))
        );
        assert_eq!(code(&format!("1000-3000 r--p 0 fe:00 1 {file}")), None);
        assert_eq!(code(&format!("1000-3000 rwxp 0 fe:00 1 {file}")), None);
        assert_eq!(code("1000-3000 r-xp 0 00:00 0 [vdso]"), None);
        assert_eq!(code("1000-3000 r-xp 0 00:00 0"), None);
    }

    #[test]
    fn what_was_let_go_still_runs() {
        trim();
        assert_eq!("4".parse::<i32>(), Ok(4));
    }
}
