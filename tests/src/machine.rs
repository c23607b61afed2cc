//! The machine that figures are of. The same program's differ by five times between processors and what they do about
//! speculation, so only ratios within a run compare.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::thread;

use serde::Serialize;

const CPUS: &str = "/proc/cpuinfo";
const KERNEL: &str = "/proc/sys/kernel/osrelease";
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    /// What the processor is vulnerable to, and what the kernel does about it.
    pub mitigations: BTreeMap<String, String>,
}

impl Machine {
    /// This one. What cannot be read is empty.
    pub fn read() -> Self {
        let cpus = fs::read_to_string(CPUS).unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let entries = fs::read_dir(VULNERABILITIES).into_iter().flatten().flatten();
        let mitigations = entries
            .filter_map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                Some((name, fs::read_to_string(entry.path()).ok()?.trim().to_owned()))
            })
            .filter(|(_, state)| state != "Not affected");
        Self {
            cpu: model.map(|(_, model)| model.to_owned()).unwrap_or_default(),
            cpus: thread::available_parallelism().map_or(0, usize::from),
            kernel: fs::read_to_string(KERNEL).unwrap_or_default().trim().to_owned(),
            mitigations: mitigations.collect(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs {:?}, Linux {}", self.cpus, self.cpu, self.kernel)?;
        self.mitigations.iter().try_for_each(|(name, state)| write!(f, "\n  {name}: {state}"))
    }
}
