//! One run of the lab: its names, and the removal of everything that bears them.
//!
//! A run holds a lock on a file of its own while it lives. What bears the name of a run without a held lock was left by
//! a crash, and the next run removes it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;

use super::netns::{NAMES, Namespace, NetnsError, ip_on_host};

const LOCKS: &str = "/run/loadbalancer-lab";
const PINS: &str = "/sys/fs/bpf";
const NAMESPACE_PREFIX: &str = "lb-";
const PIN_PREFIX: &str = "loadbalancer-lab-";
const LOCK_SUFFIX: &str = ".lock";
/// Processes end at once when killed, unless the kernel holds them.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum RunError {
    #[error("the lab makes network namespaces and loads BPF programs, which needs root: run it with sudo")]
    NotRoot,
    #[error("cannot lock {path}: {source}; the lab needs a writable /run")]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot install the removal of the lab on signals: {0}")]
    Signals(io::Error),
    #[error("cannot raise the limit of open files: {0}")]
    OpenFiles(Errno),
    #[error("cannot remove what run {id} left: {}; remove it by hand", .failures.join("; "))]
    Remove { id: String, failures: Vec<String> },
    #[error(transparent)]
    Namespace(#[from] NetnsError),
}

/// A live run. Dropping it kills the processes in its namespaces and removes namespaces, pins and lock; so do SIGINT,
/// SIGTERM, SIGHUP and `exit`.
#[derive(Debug)]
pub struct Run {
    id: String,
    /// Released after everything else is gone.
    _lock: Flock<File>,
}

/// Runs of this process. Held while a namespace is made, and for good by the removal at exit, so that none is made
/// after it.
static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Run {
    /// Removes what crashed runs left and starts a new one.
    pub fn start() -> Result<Self, RunError> {
        if !geteuid().is_root() {
            return Err(RunError::NotRoot);
        }
        remove_at_exit()?;
        raise_open_files()?;
        let mut live = live();
        fs::create_dir_all(LOCKS).map_err(|source| RunError::Lock { path: LOCKS.into(), source })?;
        // Other processes wait here, so none sees a lock file before it is locked.
        let _starting = lock(&Path::new(LOCKS).join("start"), FlockArg::LockExclusive)?;
        for id in known_ids() {
            if !is_live(&id)? {
                remove(&id)?;
            }
        }
        let id = fresh_id();
        let lock = lock(&lock_path(&id), FlockArg::LockExclusiveNonblock)?;
        let directory = directory(&id);
        fs::create_dir_all(&directory).map_err(|source| RunError::Lock { path: directory, source })?;
        live.push(id.clone());
        Ok(Self { id, _lock: lock })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where this run's pins go, below the BPF file system. It is removed with the run.
    pub fn pin_dir(&self) -> PathBuf {
        pin_dir(&self.id)
    }

    /// For files and sockets of this run. It is removed with the run.
    pub fn directory(&self) -> PathBuf {
        directory(&self.id)
    }

    /// Makes a namespace for each host.
    pub fn add_namespaces(&self, hosts: &[&str]) -> Result<Vec<Namespace>, RunError> {
        let _not_exiting = live();
        let names: Vec<String> = hosts.iter().map(|host| format!("{NAMESPACE_PREFIX}{}-{host}", self.id)).collect();
        ip_on_host(&names.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
        Ok(names.iter().map(|name| Namespace::open(name)).collect::<Result<_, _>>()?)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut live = live();
        live.retain(|id| *id != self.id);
        if let Err(error) = remove(&self.id) {
            eprintln!("lab: {error}");
        }
    }
}

/// Whatever on the machine bears the name of run `id`: namespaces, pins, lock.
pub fn traces(id: &str) -> Vec<PathBuf> {
    let mut traces = namespaces(id);
    traces.extend([pin_dir(id), directory(id), lock_path(id)].into_iter().filter(|path| path.exists()));
    traces
}

/// Processes in the namespaces of run `id`.
pub fn processes(id: &str) -> Vec<Pid> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let inside: BTreeSet<_> = namespaces(id).iter().filter_map(|path| identity(path)).collect();
    entries("/proc")
        .filter_map(|name| name.parse().ok())
        .filter(|pid| identity(&PathBuf::from(format!("/proc/{pid}/ns/net"))).is_some_and(|ns| inside.contains(&ns)))
        .map(Pid::from_raw)
        .collect()
}

fn remove(id: &str) -> Result<(), RunError> {
    let mut failures = Vec::new();
    kill_all(id, &mut failures);
    let mut note = |path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => failures.push(format!("{}: {error}", path.display())),
        _ => {}
    };
    note(&pin_dir(id), fs::remove_dir_all(pin_dir(id)));
    for path in namespaces(id) {
        // EINVAL: a name whose namespace was never mounted on it.
        let unmounted = match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => fs::remove_file(&path),
            Err(errno) => Err(errno.into()),
        };
        note(&path, unmounted);
    }
    note(&directory(id), fs::remove_dir_all(directory(id)));
    note(&lock_path(id), fs::remove_file(lock_path(id)));
    if failures.is_empty() { Ok(()) } else { Err(RunError::Remove { id: id.to_owned(), failures }) }
}

fn kill_all(id: &str, failures: &mut Vec<String>) {
    let deadline = Instant::now() + KILL_DEADLINE;
    let own = Pid::this();
    loop {
        let alive: Vec<Pid> = processes(id).into_iter().filter(|pid| *pid != own).collect();
        if alive.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            failures.push(format!("processes {alive:?} do not end"));
            return;
        }
        for pid in alive {
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => failures.push(format!("kill {pid}: {errno}")),
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The process id and a number that this process never uses again, so that whoever looks for what a run has left does not
/// find another. No dot: bpffs refuses names with one.
fn fresh_id() -> String {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    format!("{}_{}", process::id(), RUNS.fetch_add(1, Ordering::Relaxed))
}

fn is_live(id: &str) -> Result<bool, RunError> {
    let path = lock_path(id);
    match OpenOptions::new().read(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(RunError::Lock { path, source }),
        Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(RunError::Lock { path, source: errno.into() }),
        },
    }
}

/// Ids of all runs, live or not, that have left a trace.
fn known_ids() -> BTreeSet<String> {
    let namespaces = entries(NAMES).filter_map(|name| id_of_namespace(&name).map(str::to_owned));
    let pins = entries(PINS).filter_map(|name| name.strip_prefix(PIN_PREFIX).map(str::to_owned));
    let locks = entries(LOCKS).filter_map(|name| name.strip_suffix(LOCK_SUFFIX).map(str::to_owned));
    namespaces.chain(pins).chain(locks).collect()
}

fn namespaces(id: &str) -> Vec<PathBuf> {
    entries(NAMES).filter(|name| id_of_namespace(name) == Some(id)).map(|name| Path::new(NAMES).join(name)).collect()
}

/// The run of a namespace; none for namespaces that are not the lab's.
fn id_of_namespace(name: &str) -> Option<&str> {
    let (id, _host) = name.strip_prefix(NAMESPACE_PREFIX)?.split_once('-')?;
    id.starts_with(|first: char| first.is_ascii_digit()).then_some(id)
}

fn pin_dir(id: &str) -> PathBuf {
    Path::new(PINS).join(format!("{PIN_PREFIX}{id}"))
}

fn directory(id: &str) -> PathBuf {
    Path::new(LOCKS).join(id)
}

fn lock_path(id: &str) -> PathBuf {
    Path::new(LOCKS).join(format!("{id}{LOCK_SUFFIX}"))
}

/// Names in a directory; none if there is no such directory.
fn entries(dir: &str) -> impl Iterator<Item = String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok())
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>, RunError> {
    let fail = |source: io::Error| RunError::Lock { path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(fail)?;
    Flock::lock(file, how).map_err(|(_, errno)| fail(errno.into()))
}

fn live() -> MutexGuard<'static, Vec<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The default soft limit of 1,024 is less than a load test opens.
fn raise_open_files() -> Result<(), RunError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(RunError::OpenFiles)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(RunError::OpenFiles)
}

/// Signals end in `exit`, and `exit` removes all runs of this process.
fn remove_at_exit() -> Result<(), RunError> {
    extern "C" fn remove_live_runs() {
        let live = live();
        for id in live.iter() {
            if let Err(error) = remove(id) {
                eprintln!("lab: {error}");
            }
        }
        mem::forget(live);
    }
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: the handler is a plain function that lives as long as the process.
        unsafe { libc::atexit(remove_live_runs) };
        result = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(RunError::Signals).map(|mut signals| {
            thread::spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    process::exit(128 + signal);
                }
            });
        });
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_namespaces_are_told_as_such() {
        let cases = [
            ("lb-12-client1", Some("12")),
            ("lb-12_3-gateway", Some("12_3")),
            ("lb-blue-client1", None),
            ("lb-12", None),
            ("other", None),
        ];
        for (name, id) in cases {
            assert_eq!(id_of_namespace(name), id, "{name}");
        }
    }

    #[test]
    fn runs_of_one_process_have_different_ids() {
        assert_ne!(fresh_id(), fresh_id());
    }
}
