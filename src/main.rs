//! dwell
fn main() {}
