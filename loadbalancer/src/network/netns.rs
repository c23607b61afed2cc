//! Network namespaces without a name: each ends with this process, however that ends, and the kernel removes with it what is
//! in it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

/// A namespace in which a thread of its own does what it is given; clones share it. It ends with the last one, and the last
/// socket that was opened in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Makes a namespace, and the thread in it.
    ///
    /// # Errors
    /// The kernel has no network namespaces, or rights are missing.
    pub async fn new(thread_name: &str) -> io::Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (sender, entered) = oneshot::channel();
        thread::Builder::new().name(thread_name.to_owned()).spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET);
            let works = entered.is_ok();
            if sender.send(entered).is_ok() && works {
                work.iter().for_each(|job| job());
            }
        })?;
        entered.await.map_err(io::Error::other)??;
        Ok(Self { jobs })
    }

    /// Has the thread do something, and gives what came of it.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (sender, result) = oneshot::channel();
        // Whoever asked may have gone: a probe that ran out of time.
        let job: Job = Box::new(move || drop(sender.send(work())));
        self.jobs.send(job).map_err(|_| io::Error::other("the thread of the network namespace has ended"))?;
        result.await.map_err(io::Error::other)
    }

    /// A descriptor by which the kernel knows the namespace.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn descriptor(&self) -> io::Result<OwnedFd> {
        self.run(|| Ok(File::open("/proc/thread-self/ns/net")?.into())).await?
    }

    /// A socket in the namespace.
    ///
    /// # Errors
    /// As when a socket is opened.
    pub async fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.run(move || Socket::new(domain, kind, protocol)).await?
    }
}
