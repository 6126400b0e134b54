//! Images as `docker save` would write them, made of a tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// What images of this machine call its architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Write an image with this tree as its only layer to the file `archive`. It is run as
/// `process` says, the way images say it.
pub fn save(tree: &Path, name: &str, architecture: &str, process: &Value, archive: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    pack(tree, &at("layer.tar"));
    let sum = Command::new("sha256sum").arg(at("layer.tar")).output();
    let sum = String::from_utf8(sum.unwrap().stdout).unwrap();
    let layer = format!("sha256:{}", sum.split_whitespace().next().unwrap());
    let config = json!({
        "architecture": architecture, "os": "linux", "config": process,
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    std::fs::write(at("config.json"), config.to_string()).unwrap();
    let manifest = json!([
        {"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}
    ]);
    std::fs::write(at("manifest.json"), manifest.to_string()).unwrap();
    pack(dir.path(), archive);
}

/// All that is in a directory.
pub fn pack(tree: &Path, tar: &Path) {
    let mut command = Command::new("tar");
    let packed = command.arg("-C").arg(tree).arg("-cf").arg(tar).arg(".");
    assert!(packed.status().unwrap().success());
}

/// A tree with busybox and nothing else.
pub fn busybox(dir: &Path) -> PathBuf {
    let tree = dir.join("busybox");
    for part in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(tree.join(part)).unwrap();
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
    }
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    tree
}
