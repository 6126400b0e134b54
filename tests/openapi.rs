//! The OpenAPI document is what was reviewed.

use std::path::Path;

/// What clients are generated from changes only when someone has looked at it: run
/// with `UPDATE_SNAPSHOTS=1` to renew the file, then read the difference.
#[test]
fn the_document_is_the_one_that_was_reviewed() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi.json");
    let mut document = dwell::api::openapi().to_pretty_json().unwrap();
    document.push('\n');
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&file, &document).unwrap();
    }
    let reviewed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        document == reviewed,
        "the OpenAPI document is not the one in tests/openapi.json; \
         run `UPDATE_SNAPSHOTS=1 cargo test --test openapi` and review what changed",
    );
}
