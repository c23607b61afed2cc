//! Start, event loop and stop of the controller.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya_log::EbpfLogger;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::controller::{Controller, QUALITY_TICK, Request, TICK};
use super::desire;
use super::resolver::{self, Targets};
use crate::admin;
use crate::config::{Config, OnIncompatible, OnStop};
use crate::dataplane::kernel::{
    Kernel, KernelError, interface_index, lock_pins, pinned_interfaces, remove_pin_root, remove_pins,
};
use crate::dataplane::reconcile::Reconciler;
use crate::metrics;
use crate::network::prober::{self, Prober};
use crate::network::{Link, Network, announce};

const BPF_FS: &str = "/sys/fs/bpf";
/// How long a start waits for the neighbours of all servers to answer.
const SETTLE: Duration = Duration::from_secs(2);
/// Reports of checks that may wait; more slow the checks down.
const REPORTS: usize = 1024;

/// Runs the gateway until it is told to stop.
pub async fn run(path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "running a gateway needs root\nhelp: start it with sudo, or as a service; `loadbalancer check` needs none"
        );
    }
    raise_open_files()?;
    // The socket first: it tells whether another controller runs.
    let (requests_in, mut requests) = mpsc::channel(64);
    let admin = admin::server::Listener::bind(&config.admin).await?;
    let metrics = match config.metrics {
        Some(address) => Some(metrics::Listener::bind(address).await?),
        None => None,
    };
    let (network, changes) = Network::open().await?;
    // Before anything changes: what an earlier controller has left goes on forwarding if this start fails.
    for interface in &config.gateway.interfaces {
        interface_index(&interface.name)?;
    }
    vip_interface(&network, &config).await?;
    mount_bpf_fs(&config.gateway.pin_directory)?;
    if has_own_pins() {
        tracing::warn!("{OWN_PINS}");
    }
    let _lock = lock_pins(&config.gateway.pin_directory)?;
    let mut kernel = load(&config)?;
    if let Some(packet_log) = kernel.packet_log() {
        tracing::warn!("this build logs every packet at level `debug`, which costs speed: RUST_LOG=debug shows it");
        tokio::spawn(follow(packet_log));
    }
    let adopted = kernel.adopted;
    let reconciler = Reconciler::new(kernel)?;
    let seed = seed(&config, &reconciler)?;

    let (targets, wanted) = watch::channel(Targets::default());
    let (resolved_in, mut resolved) = mpsc::channel(1);
    let (reports_in, mut reports) = mpsc::channel(REPORTS);
    let (hooks_in, mut hooks) = mpsc::channel(REPORTS);
    let mut controller = Controller::new(config, path.to_owned(), reconciler, seed, reports_in, hooks_in, targets);
    tokio::spawn(resolver::run(network.clone(), changes, wanted, resolved_in));
    let known = resolver::settle(&mut resolved, SETTLE).await;
    route_probes(&network, &controller).await;
    controller.on_resolved(known);
    // A start that cannot do what it is told fails; later the same is logged and tried again.
    let begun = match begin(&network, &mut controller).await {
        Ok(()) => assign_vips(&network, &controller).await,
        Err(error) => Err(error),
    };
    let mut assigned = match begun {
        Ok(assigned) => assigned,
        Err(error) => {
            if !adopted {
                remove_all(&controller.config.gateway.pin_directory)?;
            }
            return Err(error);
        }
    };
    forget_unwanted_links(&controller);
    tokio::spawn(admin.serve(requests_in.clone(), controller.config.gateway.pin_directory.clone()));
    if let Some(listener) = metrics {
        tokio::spawn(listener.serve(requests_in));
    }
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(
        adopted,
        services = controller.config.services.len(),
        interfaces = controller.config.gateway.interfaces.len(),
        "the gateway forwards"
    );

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quality_tick = interval(QUALITY_TICK);
    quality_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => {
                notify(&[sd_notify::NotifyState::Reloading]);
                // The error is logged and shown by `status`.
                let reloaded = controller.reload();
                if reloaded.is_ok() {
                    route_probes(&network, &controller).await;
                    follow_prober(&network, &mut controller).await;
                    assigned = reassign_vips(&network, &controller, assigned).await;
                }
                notify(&[sd_notify::NotifyState::Ready]);
            }
            Some(now) = resolved.recv() => {
                // Routes go with their interface, and come back here.
                route_probes(&network, &controller).await;
                controller.on_resolved(now);
                // What goes wrong is logged, shown by `status`, and tried again with the next change.
                if let Err(error) = controller.attach() {
                    tracing::debug!(%error, "an interface is not attached");
                }
            }
            Some(report) = reports.recv() => {
                let mut changed = controller.on_report(report);
                // What else waits is part of the same change.
                while let Ok(report) = reports.try_recv() {
                    changed |= controller.on_report(report);
                }
                if changed {
                    controller.apply();
                }
            }
            Some(done) = hooks.recv() => controller.on_hook(done),
            Some(request) = requests.recv() => {
                let reload = matches!(request, Request::Reload(_));
                controller.handle(request).await;
                if reload {
                    route_probes(&network, &controller).await;
                    follow_prober(&network, &mut controller).await;
                    assigned = reassign_vips(&network, &controller, assigned).await;
                }
            }
            _ = quality_tick.tick() => controller.on_quality_tick(),
            _ = tick.tick() => {
                if let Err(error) = controller.on_tick() {
                    tracing::error!(%error, "cannot count flows");
                }
                if controller.tend_prober() {
                    follow_prober(&network, &mut controller).await;
                }
            }
        }
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    // Without a controller nobody probes.
    close_prober(&network, &mut controller, true).await;
    stop(&network, &controller, &assigned).await
}

/// Attaches to all interfaces, and opens what probes through VIPs need.
async fn begin(network: &Network, controller: &mut Controller) -> Result<()> {
    controller.attach()?;
    if controller.lacks_prober() {
        open_prober(network, controller).await?;
    }
    Ok(())
}

async fn open_prober(network: &Network, controller: &mut Controller) -> Result<()> {
    let interface = prober::interface_name(&controller.config.gateway.pin_directory);
    let prober = Prober::open(network, &interface).await?;
    let frames = prober.frames().await.context("cannot open a packet socket, by which what has waited is sent on")?;
    controller.open_prober(prober, frames)?;
    controller.apply();
    Ok(())
}

/// After a reload. What goes wrong is shown by `status`; the next reload tries again.
async fn follow_prober(network: &Network, controller: &mut Controller) {
    if controller.lacks_prober() {
        if let Err(error) = open_prober(network, controller).await {
            controller.miss_prober(format!("{error:#}"));
        }
    } else {
        close_prober(network, controller, false).await;
    }
}

/// What goes wrong is logged; the interface then goes a little later.
async fn close_prober(network: &Network, controller: &mut Controller, stop: bool) {
    if let Some(interface) = controller.close_prober(stop)
        && let Err(error) = network.remove_link(&interface).await
    {
        tracing::warn!(%interface, %error, "the interface of checks through VIPs stays for a while");
    }
}

/// What goes wrong is logged; probes then fail with a reason of their own.
async fn route_probes(network: &Network, controller: &Controller) {
    let config = &controller.config;
    let wanted = desire::policy_routes(config);
    if let Err(error) = network.set_policy_routes(config.gateway.channel_marks, &wanted).await {
        tracing::error!(%error, "probes cannot be bound to channels");
    }
}

async fn stop(network: &Network, controller: &Controller, assigned: &[(String, IpAddr)]) -> Result<()> {
    let gateway = &controller.config.gateway;
    if !controller.config.channels.is_empty() {
        // Without a controller nobody probes.
        network.set_policy_routes(gateway.channel_marks, &[]).await?;
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
            for (interface, vip) in assigned {
                network.unassign(interface, *vip).await?;
            }
            tracing::info!("stopped and removed (on_stop = \"remove\")");
        }
    }
    Ok(())
}

fn remove_all(pin_directory: &Path) -> Result<(), KernelError> {
    remove_pins(pin_directory)?;
    remove_pin_root(pin_directory)
}

fn load(config: &Config) -> Result<Kernel> {
    let root = &config.gateway.pin_directory;
    match Kernel::load(config.limits, Some(root)) {
        Err(KernelError::Incompatible { difference, .. })
            if config.gateway.on_incompatible == OnIncompatible::Replace =>
        {
            tracing::warn!(%difference, "the pinned state does not fit and is replaced; flows that it held are lost");
            remove_pins(root)?;
            Ok(Kernel::load(config.limits, Some(root))?)
        }
        result => Ok(result?),
    }
}

/// Passes on what the packet path logs.
async fn follow(packet_log: EbpfLogger<&'static dyn log::Log>) {
    // SAFETY: the log owns its descriptor, gives the same one whenever asked, and lives in what is registered.
    let Ok(mut packet_log) = (unsafe { AsyncFd::register(packet_log) }) else {
        return;
    };
    while let Ok(mut ready) = packet_log.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

/// The key of the flow hash: as configured, else as pinned, else a new one.
fn seed(config: &Config, reconciler: &Reconciler) -> Result<u64> {
    let pinned = reconciler.settings().seed;
    match config.gateway.hash_seed {
        Some(seed) => {
            if reconciler.kernel().adopted && pinned != 0 && pinned != seed {
                tracing::warn!("hash_seed differs from that of the pinned state: live flows may change servers");
            }
            Ok(seed)
        }
        None if pinned != 0 => Ok(pinned),
        None => {
            let mut bytes = [0u8; 8];
            std::io::Read::read_exact(
                &mut std::fs::File::open("/dev/urandom").context("open /dev/urandom")?,
                &mut bytes,
            )
            .context("read /dev/urandom")?;
            Ok(u64::from_ne_bytes(bytes).max(1))
        }
    }
}

/// Links that an earlier controller has pinned on interfaces that are not configured any more.
fn forget_unwanted_links(controller: &Controller) {
    let gateway = &controller.config.gateway;
    for name in pinned_interfaces(&gateway.pin_directory) {
        if !gateway.interfaces.iter().any(|interface| interface.name == name) && !controller.probes_from(&name) {
            match crate::dataplane::kernel::remove_link(&gateway.pin_directory, &name) {
                Ok(()) => tracing::info!(interface = %name, "detached: not in the configuration any more"),
                Err(error) => tracing::error!(interface = %name, %error, "cannot detach"),
            }
        }
    }
}

async fn vip_interface(network: &Network, config: &Config) -> Result<Option<(String, Link)>> {
    let Some(interface) = config.gateway.vip_interface.clone() else {
        return Ok(None);
    };
    let link = network.interface(&interface).await?.with_context(|| {
        format!("there is no interface {interface}\nhelp: correct `vip_interface` in [gateway]; `ip link` lists them")
    })?;
    Ok(Some((interface, link)))
}

async fn assign_vips(network: &Network, controller: &Controller) -> Result<Vec<(String, IpAddr)>> {
    let mut assigned = Vec::new();
    let Some((interface, link)) = vip_interface(network, &controller.config).await? else {
        return Ok(assigned);
    };
    for vip in controller.vips() {
        if network.assign(&interface, vip).await? {
            tracing::info!(%vip, %interface, "VIP assigned");
        }
        assigned.push((interface.clone(), vip));
        // Also when it was there already: whoever had it before may still get its traffic.
        if let Some(mac) = link.mac
            && let Err(error) = announce(link.index, mac, vip)
        {
            tracing::warn!(%vip, %error, "the VIP could not be announced");
        }
    }
    Ok(assigned)
}

/// After a reload. What goes wrong is logged; the next reload tries again.
async fn reassign_vips(
    network: &Network,
    controller: &Controller,
    before: Vec<(String, IpAddr)>,
) -> Vec<(String, IpAddr)> {
    let mut now = match assign_vips(network, controller).await {
        Ok(now) => now,
        Err(error) => {
            tracing::error!(%error, "the VIPs are assigned as before");
            return before;
        }
    };
    for (interface, vip) in before.into_iter().filter(|old| !now.contains(old)).collect::<Vec<_>>() {
        match network.unassign(&interface, vip).await {
            Ok(_) => tracing::info!(%vip, %interface, "VIP removed"),
            Err(error) => {
                tracing::error!(%vip, %interface, %error, "cannot remove the VIP");
                now.push((interface, vip));
            }
        }
    }
    now
}

/// What is said of a process with a BPF file system of its own: `ip netns exec` gives a new /sys, for one.
pub const OWN_PINS: &str = "this process has a BPF file system of its own: what is pinned goes with it, and forwarding ends \
                            when it does; to run in a network namespace use `nsenter --net=/run/netns/NAME`, not `ip netns exec`";

/// Whether the BPF file system is another than that of the machine's first process.
pub fn has_own_pins() -> bool {
    let device = |root: &str| std::fs::metadata(format!("{root}{BPF_FS}")).map(|found| found.dev()).ok();
    device("").zip(device("/proc/1/root")).is_some_and(|(own, first)| own != first)
}

/// Mounts the BPF file system where it is missing, as other BPF tools do.
fn mount_bpf_fs(pin_directory: &Path) -> Result<()> {
    let root = PathBuf::from(BPF_FS);
    if !pin_directory.starts_with(&root) || statfs(&root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount the BPF file system on {BPF_FS}; try `mount -t bpf bpf {BPF_FS}`"))
}

/// The checks of many servers open more files than the usual limit of 1,024.
fn raise_open_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Tells systemd, if it has started us.
fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
