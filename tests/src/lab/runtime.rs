//! A tokio runtime inside a network namespace.

use std::io;
use std::sync::mpsc;
use std::thread;

use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::netns::{Namespace, NetnsError};
use super::priority;

#[derive(Debug, Error)]
pub enum RuntimeError {
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    #[error("cannot build a tokio runtime for the network namespace {name}: {source}; are file descriptors used up?")]
    Build { name: String, source: io::Error },
}

/// A current-thread runtime whose thread is in a namespace: sockets that its tasks make belong there. Dropping it ends
/// its tasks and waits for its thread.
#[derive(Debug)]
pub struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Runtime {
    pub fn start(namespace: &Namespace) -> Result<Self, RuntimeError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| RuntimeError::Build { name: namespace.name().to_owned(), source })?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (entering, entered) = mpsc::sync_channel(1);
        let inside = namespace.clone();
        let thread = thread::Builder::new()
            .name(namespace.name().to_owned())
            .spawn(move || {
                let result = inside.enter();
                let may_run = result.is_ok();
                entering.send(result).expect("the starter waits for the answer");
                if may_run {
                    // Used or dropped, the sender means stop.
                    runtime.block_on(stopped).unwrap_or_default();
                }
            })
            .map_err(|source| NetnsError::Thread { name: namespace.name().to_owned(), source })?;
        entered.recv().expect("the thread answers before anything else")?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Has the runtime's thread run before all ordinary ones. For what is to be on time and leaves processors idle.
    ///
    /// # Panics
    /// Without root, which a namespace needs as well.
    pub fn take_priority(&self) {
        self.block_on(async { priority::take() }).expect("root may");
    }

    /// Starts a task in the namespace.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Runs a future in the namespace and waits for it. Not for use inside of another runtime.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let task = self.spawn(future);
        let (done, wait) = mpsc::sync_channel(1);
        self.spawn(async move { done.send(task.await) });
        match wait.recv().expect("the runtime lives as long as self") {
            Ok(output) => output,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("lab: the thread of a runtime panicked; its message is above");
        }
    }
}
