//! Commands that answer as Slurm's do where there are thousands of jobs, and cost next to
//! nothing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The command's own process is what the job is called: no other has that number.
const SBATCH: &str = r#"#!/bin/sh
cat >/dev/null
for word in "$@"; do
  case $word in --job-name=*) name=${word#*=} ;; esac
done
printf '%-20s|%-100s|%-20s|%-24s|%-20s|%-12s|%-300s\n' \
  $$ "$name" PENDING N/A 22:00 0 Priority >>DIR/jobs
echo $$
"#;

/// Whatever it is asked, as it ignores nothing that Dwell asks for.
const SQUEUE: &str = "#!/bin/sh\necho >>DIR/looks\nexec cat DIR/jobs\n";

/// Jobs that wait until they are told to run.
pub struct StandIn {
    dir: TempDir,
}

impl StandIn {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in ["jobs", "looks"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        for (name, script) in [("sbatch", SBATCH), ("squeue", SQUEUE)] {
            let file = dir.path().join(name);
            let script = script.replace("DIR", &dir.path().display().to_string());
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self { dir }
    }

    /// By this its commands are found before Slurm's own.
    pub fn environment(&self) -> [(&'static str, String); 1] {
        let usual = std::env::var("PATH").unwrap();
        [("PATH", format!("{}:{usual}", self.dir.path().display()))]
    }

    /// How many jobs there are.
    pub fn jobs(&self) -> usize {
        lines(&self.file("jobs"))
    }

    /// How often somebody has asked for all of them.
    pub fn looks(&self) -> usize {
        lines(&self.file("looks"))
    }

    /// All that wait have a place.
    pub fn all_run(&self) {
        let (jobs, changed) = (self.file("jobs"), self.file("changed"));
        let wait = std::fs::read_to_string(&jobs).unwrap();
        let run = wait
            .replace("|PENDING", "|RUNNING")
            .replace("|Priority", "|None    ");
        std::fs::write(&changed, run).unwrap();
        std::fs::rename(changed, jobs).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap().lines().count()
}
