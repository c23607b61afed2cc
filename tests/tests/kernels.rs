//! The packet path on other kernels, under emulation: this binary boots them with itself as the first process, which loads
//! the programs and runs all packet cases.
//!
//! `LOADBALANCER_KERNELS` names a directory with an unpacked kernel package per series (`6.1/boot/vmlinuz-...`);
//! `cargo xtask test kernels` provides it, and the emulator on PATH.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use loadbalancer_tests::frames::world::World;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::packet;

const EMULATOR: &str = "qemu-system-x86_64";
/// Begins the guest's last line.
const RESULT: &str = "GUEST RESULT";
/// An emulated processor is some fifty times as slow as a real one.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// A trial for each kernel that there is.
pub fn trials() -> Vec<Trial> {
    let Some(kernels) = std::env::var_os("LOADBALANCER_KERNELS").map(PathBuf::from) else { return Vec::new() };
    let entries = fs::read_dir(&kernels).into_iter().flatten();
    let mut series: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("boot").is_dir())
        .collect();
    series.sort();
    let trial = |kernel: PathBuf| {
        let name = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let run = move || on(&kernel).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(format!("kernels::all_packet_cases_on_linux_{name}"), run)
    };
    series.into_iter().map(trial).collect()
}

/// The first process of the booted kernel.
pub fn guest() -> ! {
    // One that cannot load the programs needs not say so for each case.
    let result = prepare().and_then(|()| World::new()).map(|world| {
        drop(world);
        // On this thread, which has loaded them.
        let arguments = Arguments { quiet: true, test_threads: Some(1), ..Arguments::default() };
        libtest_mimic::run(&arguments, packet::trials())
    });
    match result {
        Ok(ran) => println!("{RESULT} {} passed {} failed", ran.num_passed, ran.num_failed),
        // The last line is read as the result; what the verifier says has many.
        Err(error) => println!("{error:#}\n{RESULT} 0 passed 1 failed"),
    }
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        // The kernel ends when its first process does.
        Err(error) => panic!("cannot reboot: {error}"),
    }
}

fn prepare() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| format!("mount {at}"))?;
    }
    println!("guest: Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    Ok(())
}

fn on(kernel: &Path) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("loadbalancer-kernels-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let archive = directory.join("initramfs");
    let begun = Instant::now();
    let result = initramfs().and_then(|bytes| Ok(fs::write(&archive, bytes)?)).and_then(|()| boot(kernel, &archive));
    fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    let (passed, failed) = result?;
    println!("{}: {passed} passed, {failed} failed, {:.0} s", kernel.display(), begun.elapsed().as_secs_f64());
    ensure!(failed == 0, "{failed} of {} cases failed; what they said is above", passed + failed);
    Ok(())
}

/// Boots a kernel and reads what its guest says.
fn boot(kernel: &Path, archive: &Path) -> Result<(u32, u32)> {
    let image = fs::read_dir(kernel.join("boot"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("there is no vmlinuz in its boot directory")?;
    let mut emulator = Command::new(EMULATOR)
        // In software: what hardware help there is may be that of a virtual machine, which fails in odd ways.
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1536", "-no-reboot", "-nographic"])
        .args(["-net", "none", "-monitor", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 panic=-1 quiet rdinit=/init"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot run {EMULATOR}; `cargo xtask setup --for kernels` unpacks it"))?;
    let output = emulator.stdout.take().context("the output is piped")?;
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    let result = loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(counts) = line.split_once(RESULT).map(|(_, counts)| counts.to_owned()) {
                    break Some(counts);
                }
                // Shown by `cargo xtask test --verbose kernels`, and when the suite fails.
                eprintln!("{}", line.trim_end());
                seen.push(line);
            }
            Err(_) => break None,
        }
    };
    if emulator.kill().is_err() {
        eprintln!("kernels: the emulator had ended by itself");
    }
    emulator.wait()?;
    if reader.join().is_err() {
        bail!("reading the emulator's output failed");
    }
    let Some(counts) = result else {
        bail!("the guest gave no result within {PATIENCE:?}; it said:\n{}", seen.join("\n"));
    };
    let numbers: Vec<u32> = counts.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [passed, failed] = numbers[..] else {
        bail!("the guest's result is `{counts}`");
    };
    ensure!(passed > 0, "the guest ran nothing:{counts}\n{}", seen.join("\n"));
    Ok((passed, failed))
}

/// An archive with this program as `/init`, and the libraries that it is linked with (cpio, "newc" format: the kernel's
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn initramfs() -> Result<Vec<u8>> {
    let own = std::env::current_exe()?;
    let mut files = vec![(PathBuf::from("init"), own.clone())];
    // What the loader would load, and the loader itself.
    let listing = Command::new("ldd").arg(&own).output().context("cannot run ldd")?;
    for line in String::from_utf8_lossy(&listing.stdout).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            files.push((path.trim_start_matches('/').into(), path.into()));
        }
    }
    let mut archive = Archive::default();
    archive.add("dev", 0o040_755, &[], (0, 0));
    // The kernel opens it for the first process.
    archive.add("dev/console", 0o020_600, &[], (5, 1));
    let mut directories = Vec::new();
    for (name, path) in files {
        for directory in name.ancestors().skip(1).filter(|directory| !directory.as_os_str().is_empty()) {
            if !directories.contains(&directory.to_owned()) {
                directories.push(directory.to_owned());
            }
        }
        directories.sort();
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.pending.push((name, content));
    }
    for directory in directories {
        archive.add(&directory.to_string_lossy(), 0o040_755, &[], (0, 0));
    }
    for (name, content) in std::mem::take(&mut archive.pending) {
        archive.add(&name.to_string_lossy(), 0o100_755, &content, (0, 0));
    }
    archive.add("TRAILER!!!", 0, &[], (0, 0));
    Ok(archive.bytes)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    pending: Vec<(PathBuf, Vec<u8>)>,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let fields =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
