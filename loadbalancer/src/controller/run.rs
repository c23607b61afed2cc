//! Start, event loop and stop of the controller.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::chores::{self, Chore, Worker, vip_interface};
use super::component::TICK;
use super::dispatch::{Controller, Sources};
use super::event::{Event, Request};
use super::start::{OWN_PINS, has_own_pins, load, mount_bpf_fs, raise_open_files, remove_all, seed};
use crate::config::{Config, OnStop};
use crate::dataplane::pins::{lock_pins, pinned_interfaces, remove_link};
use crate::dataplane::reconcile::Reconciler;
use crate::health::{ProbeReport, schedule};
use crate::network::resolver::{self, Targets};
use crate::network::{Network, interface};
use model::route::Resolved;

use super::standby::HookDone;

/// How long a start waits for the neighbours of all servers to answer.
const SETTLE: Duration = Duration::from_secs(2);
/// Reports of checks that may wait; more slow the checks down.
const REPORTS: usize = 1024;
/// Reports are taken together, so long after the last ones: to wake up for one costs more than to take it.
const GATHER: Duration = schedule::BATCH;
/// Requests, and things done about the network, that may wait to be taken.
const REQUESTS: usize = 64;

/// Where events come from.
struct Inbox {
    reports: mpsc::Receiver<ProbeReport>,
    hooks: mpsc::Receiver<HookDone>,
    resolved: mpsc::Receiver<Resolved>,
    requests: mpsc::Receiver<Request>,
    done: mpsc::Receiver<Event>,
}

/// Runs the gateway of a configuration, read from `path`, until it is told to stop. When it forwards, `serve` gets the way to
/// ask it.
///
/// # Errors
/// It cannot start as the configuration says, with all that it has begun taken back; or not all can be taken back at its stop.
pub async fn run(config: Config, path: &Path, serve: impl FnOnce(mpsc::Sender<Request>)) -> Result<()> {
    raise_open_files()?;
    let (requests_in, requests) = mpsc::channel(REQUESTS);
    let (network, changes) = Network::open().await?;
    // Before anything changes: what an earlier controller has left goes on forwarding if this start fails.
    for interface in &config.gateway.interfaces {
        interface::index(&interface.name)?;
    }
    vip_interface(&network, config.gateway.vip_interface.as_deref())?;
    mount_bpf_fs(&config.gateway.pin_directory)?;
    if has_own_pins() {
        tracing::warn!("{OWN_PINS}");
    }
    let _lock = lock_pins(&config.gateway.pin_directory)?;
    let mut kernel = load(&config)?;
    if let Some(packet_log) = kernel.packet_log() {
        tracing::warn!("this build logs every packet at level `debug`, which costs speed: RUST_LOG=debug shows it");
        packet_log.follow()?;
    }
    let adopted = kernel.adopted;
    let reconciler = Reconciler::new(kernel)?;
    let seed = seed(&config, &reconciler)?;

    let (targets, wanted) = watch::channel(Targets::default());
    let (resolved_in, resolved) = mpsc::channel(1);
    let (reports_in, reports) = mpsc::channel(REPORTS);
    let (hooks_in, hooks) = mpsc::channel(REPORTS);
    let (done_in, done) = mpsc::channel(REQUESTS);
    let mut inbox = Inbox { reports, hooks, resolved, requests, done };
    let (mut worker, chores) = Worker::new(network.clone(), done_in);
    let sources = Sources { reports: reports_in, hooks: hooks_in, targets, chores };
    let mut controller = Controller::new(config, path.to_owned(), reconciler, seed, sources);
    tokio::spawn(resolver::run(network, changes, wanted, resolved_in));
    let known = resolver::settle(&mut inbox.resolved, SETTLE).await;
    // A start that cannot do what it is told fails; later the same is logged and tried again.
    if let Err(error) = begin(&mut controller, &mut worker, known).await {
        if !adopted {
            remove_all(&controller.config().gateway.pin_directory)?;
        }
        return Err(error);
    }
    forget_unwanted_links(&controller);
    let worker = worker.spawn();
    serve(requests_in);
    notify(&[sd_notify::NotifyState::Ready]);
    let config = controller.config();
    let (services, interfaces) = (config.services.len(), config.gateway.interfaces.len());
    tracing::info!(adopted, services, interfaces, "the gateway forwards");
    follow_events(&mut controller, &mut inbox).await?;
    notify(&[sd_notify::NotifyState::Stopping]);
    stop(controller, worker).await
}

/// Brings the packet path to interfaces, and VIPs to theirs.
async fn begin(controller: &mut Controller, worker: &mut Worker, known: Resolved) -> Result<()> {
    let events = worker.begin().await?;
    controller.on(Event::Resolved(known));
    controller.attach()?;
    for event in events {
        controller.on(event);
    }
    if let Some(error) = controller.prober_error() {
        bail!("{error}");
    }
    if let Chore::Vips { interface, vips } = controller.vips() {
        worker.assign(interface.as_deref(), &vips).await?;
    }
    Ok(())
}

/// Takes events until a signal says to stop.
async fn follow_events(controller: &mut Controller, inbox: &mut Inbox) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gathered = Instant::now();
    loop {
        let event = tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hang_up.recv() => Event::Reload,
            Some(resolved) = inbox.resolved.recv() => Event::Resolved(resolved),
            Some(report) = report_from(&mut inbox.reports, gathered) => Event::Report(report),
            Some(done) = inbox.hooks.recv() => Event::Hook(done),
            Some(event) = inbox.done.recv() => event,
            Some(request) = inbox.requests.recv() => Event::Request(request),
            _ = tick.tick() => {
                controller.tick();
                continue;
            }
        };
        let reload = matches!(event, Event::Reload | Event::Request(Request::Reload(_)));
        if reload {
            notify(&[sd_notify::NotifyState::Reloading]);
        }
        let mut changed = controller.take(event);
        // Reports that wait are part of the same change.
        gathered = Instant::now() + GATHER;
        while let Ok(report) = inbox.reports.try_recv() {
            changed |= controller.take(Event::Report(report));
        }
        controller.settle(changed);
        if reload {
            notify(&[sd_notify::NotifyState::Ready]);
        }
    }
}

/// The next report, not before a moment.
async fn report_from(reports: &mut mpsc::Receiver<ProbeReport>, moment: Instant) -> Option<ProbeReport> {
    sleep_until(moment).await;
    reports.recv().await
}

async fn stop(mut controller: Controller, worker: JoinHandle<chores::Left>) -> Result<()> {
    controller.on(Event::Stop);
    let gateway = controller.config().gateway.clone();
    let has_channels = !controller.config().channels.is_empty();
    // With the controller goes whoever could ask for more.
    drop(controller);
    let left = worker.await?;
    if has_channels {
        // Without a controller nobody probes.
        left.network.set_policy_routes(gateway.channel_marks, &[]).await?;
    }
    match gateway.on_stop {
        OnStop::Keep => {
            tracing::info!(
                pins = %gateway.pin_directory.display(),
                "stopped; forwarding goes on without checks (on_stop = \"keep\"); `loadbalancer detach` ends it"
            );
        }
        OnStop::Remove => {
            remove_all(&gateway.pin_directory)?;
            left.assigned.remove(&left.network).await?;
            tracing::info!("stopped and removed (on_stop = \"remove\")");
        }
    }
    Ok(())
}

/// Links that an earlier controller has pinned on interfaces that are not configured any more.
fn forget_unwanted_links(controller: &Controller) {
    let gateway = &controller.config().gateway;
    for name in pinned_interfaces(&gateway.pin_directory) {
        if !gateway.interfaces.iter().any(|interface| interface.name == name) && !controller.probes_from(&name) {
            match remove_link(&gateway.pin_directory, &name) {
                Ok(()) => tracing::info!(interface = %name, "detached: not in the configuration any more"),
                Err(error) => tracing::error!(interface = %name, %error, "cannot detach"),
            }
        }
    }
}

/// Tells systemd, if it has started us.
fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
