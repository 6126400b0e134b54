//! What processes used, by the kernel's account.

use std::collections::HashMap;
use std::fs;

use rustix::param::clock_ticks_per_second;

use crate::Result;

/// These processes and all that descend from them.
pub fn families(of: &[u32]) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
        // Who is gone by now has no parent.
        if let Some((pid, Ok(parent))) = pid.map(|pid| (pid, stat(pid, 1))) {
            children
                .entry(u32::try_from(parent)?)
                .or_default()
                .push(pid);
        }
    }
    let mut members = of.to_vec();
    let mut at = 0;
    while let Some(member) = members.get(at) {
        members.extend(children.remove(member).unwrap_or_default());
        at += 1;
    }
    Ok(members)
}

/// CPU time that they used since they began, all threads, in user and kernel mode.
pub fn cpu_s(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        const USER: usize = 11;
        const SYSTEM: usize = 12;
        ticks += stat(*pid, USER)? + stat(*pid, SYSTEM)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "not so many")]
    Ok(ticks as f64 / clock_ticks_per_second() as f64)
}

/// Memory of theirs that is resident.
pub fn resident_kib(pids: &[u32]) -> Result<f64> {
    pids.iter()
        .map(|pid| crate::memory::resident_kib(*pid))
        .sum()
}

/// A field of a process's `stat`, from its state on, which is 0.
fn stat(pid: u32, field: usize) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything.
    let value = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(field)?.parse().ok());
    value.ok_or_else(|| format!("the process {pid} has no field {field}").into())
}
