//! What SQLite says, as a sentence that names the file and the remedy.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// The sentence for `error`, met on `file`.
pub(super) fn sentence(file: &Path, error: &rusqlite::Error) -> StoreError {
    let file = file.display();
    let Some(code) = error.sqlite_error_code() else {
        return StoreError(format!(
            "{file} has a row that cannot be read ({error}); was it written by another \
             version of dwell?"
        ));
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "SQLite's list of codes is open; the rest need no remedy of their own"
    )]
    let what = match code {
        ErrorCode::DiskFull => {
            "could not be written: its disk is full; free some space and try again".to_owned()
        }
        ErrorCode::ReadOnly | ErrorCode::PermissionDenied => {
            "is not writable; give dwell's user write access to it and to its directory".to_owned()
        }
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => {
            "is locked by another program (a backup?); try again when that is done".to_owned()
        }
        ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => {
            "is damaged, or its disk is, or it is no store of dwell's; look at the disk first, \
             then restore the file from a backup, or move it away to begin anew"
                .to_owned()
        }
        ErrorCode::CannotOpen => format!(
            "could not be opened ({error}); its directory must exist and be writable for dwell's \
             user"
        ),
        ErrorCode::SystemIoFailure => {
            format!("could not be read or written ({error}); look at its disk and file system")
        }
        ErrorCode::ConstraintViolation => {
            format!("refused what contradicts it ({error}); please report this as a bug")
        }
        _ => format!("could not be used ({error})"),
    };
    StoreError(format!("{file} {what}"))
}
