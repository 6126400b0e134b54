//! The programs that Dwell is compared with: found, or installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::Uid;

use crate::Result;

/// Where programs for administrators are is not on every path.
const ALSO_IN: &str = ":/usr/local/sbin:/usr/sbin:/sbin";

/// The program, from Debian's package of that name if need be; `None`, and the reason
/// said, if it cannot be had.
pub fn from_debian(name: &str) -> Result<Option<PathBuf>> {
    if let Some(program) = find(name) {
        return Ok(Some(program));
    }
    if !Uid::effective().is_root() || find("apt-get").is_none() {
        eprintln!("{name} is left out: it is not installed, and only root can install it");
        return Ok(None);
    }
    eprintln!("installing {name}");
    let install = Command::new("apt-get")
        .args(["install", "-y", "-q", name])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null())
        .status()?;
    let installed = find(name);
    if installed.is_none() {
        eprintln!("{name} is left out: it could not be installed ({install})");
    }
    Ok(installed)
}

/// A script of an npm package, installed in `dir`; `None`, and the reason said, if it
/// cannot be had.
pub fn from_npm(dir: &Path, name: &str, version: &str) -> Result<Option<PathBuf>> {
    let script = dir.join("node_modules/.bin").join(name);
    if script.exists() {
        return Ok(Some(script));
    }
    let Some(npm) = find("npm") else {
        eprintln!("{name} is left out: installing it takes npm");
        return Ok(None);
    };
    eprintln!("installing {name}");
    let install = Command::new(npm)
        .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
        .arg(dir)
        .arg(format!("{name}@{version}"))
        .stdout(Stdio::null())
        .status()?;
    let installed = script.exists().then_some(script);
    if installed.is_none() {
        eprintln!("{name} is left out: it could not be installed ({install})");
    }
    Ok(installed)
}

/// A program of crates.io's, built in `dir`; `None`, and the reason said, if it cannot be
/// had.
pub fn from_crates(
    dir: &Path,
    name: &str,
    version: &str,
    options: &[&str],
) -> Result<Option<PathBuf>> {
    let program = dir.join("bin").join(name);
    if program.exists() {
        return Ok(Some(program));
    }
    eprintln!("installing {name}");
    // Its lock file may be older than this compiler can build.
    let install = Command::new(cargo())
        .args(["install", "--quiet", name, "--version", version, "--root"])
        .arg(dir)
        .args(options)
        .status()?;
    let installed = program.exists().then_some(program);
    if installed.is_none() {
        eprintln!(
            "{name} is left out: it could not be built ({install}); that takes pkg-config and \
             libssl-dev"
        );
    }
    Ok(installed)
}

/// The sources of a crate, put into `dir`; `None`, and the reason said, if they cannot be
/// had.
pub fn sources_from_crates(dir: &Path, name: &str, version: &str) -> Result<Option<PathBuf>> {
    let sources = dir.join("vendor").join(name);
    if sources.exists() {
        return Ok(Some(sources));
    }
    std::fs::create_dir_all(dir.join("src"))?;
    std::fs::write(dir.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"sources\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{name} = \"={version}\"\n[workspace]\n"
    );
    std::fs::write(dir.join("Cargo.toml"), manifest)?;
    let vendor = Command::new(cargo())
        .args(["vendor", "--quiet"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .status()?;
    let fetched = sources.exists().then_some(sources);
    if fetched.is_none() {
        eprintln!("what needs {name} is left out: it could not be fetched ({vendor})");
    }
    Ok(fetched)
}

fn cargo() -> PathBuf {
    find("cargo").unwrap_or_else(|| "cargo".into())
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ALSO_IN;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}
