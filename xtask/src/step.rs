//! One piece of work that takes a while, shown as one line.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often the elapsed time on a terminal is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);
/// Columns of the last line of output that are shown behind the elapsed time.
const PEEK: usize = 60;

pub struct Finished {
    pub success: bool,
    pub output: String,
    pub took: Duration,
}

/// Runs a command to its end and keeps what it prints; `echo` prints it as well.
pub fn watch(label: &str, command: &mut Command, echo: bool) -> Result<Finished> {
    let started = Instant::now();
    let program = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("{label}: cannot run {program}"))?;
    // The command holds the pipe's write end: it must go, or the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });

    let mut output = String::new();
    let mut spinner = Spinner::new(label, started, echo);
    let mut ended = false;
    loop {
        match lines.recv_timeout(REDRAW) {
            Ok(line) => {
                if echo {
                    println!("{line}");
                }
                spinner.draw(&line);
                output.push_str(&line);
                output.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => break,
            // A process that the command left behind may hold the pipe open for ever: once the command has ended, its
            // last words are all that is waited for.
            Err(RecvTimeoutError::Timeout) if ended => break,
            Err(RecvTimeoutError::Timeout) => {
                spinner.draw("");
                ended = child.try_wait().with_context(|| format!("{label}: cannot wait for {program}"))?.is_some();
            }
        }
    }
    spinner.clear();
    let status = child.wait().with_context(|| format!("{label}: cannot wait for {program}"))?;
    Ok(Finished { success: status.success(), output, took: started.elapsed() })
}

/// Runs a command that must succeed. What it prints is shown only if it fails; progress goes to standard error, which
/// leaves standard output to the program that a task ends with.
pub fn run(label: &str, command: &mut Command) -> Result<()> {
    watch(label, command, false)?.must_succeed(label)
}

/// Runs a compilation that must succeed. What the compiler says is shown if it fails or warns.
pub fn compile(label: &str, command: &mut Command) -> Result<()> {
    let mut finished = watch(label, command, false)?;
    let said: Vec<&str> = finished.output.lines().filter(|line| !is_progress(line)).collect();
    finished.output = said.join("\n") + "\n";
    if finished.success && finished.output.lines().any(|line| line.starts_with("warning")) {
        eprint!("{}", finished.output);
    }
    finished.must_succeed(label)
}

/// A line in which cargo tells what it does, such as `   Compiling anyhow v1.0.104`.
fn is_progress(line: &str) -> bool {
    let verb = line.trim_start();
    let indented = verb.len() < line.len();
    indented
        && ["Blocking", "Compiling", "Downloaded", "Downloading", "Finished", "Locking", "Updating"]
            .iter()
            .any(|known| verb.strip_prefix(known).is_some_and(|rest| rest.starts_with(' ')))
}

impl Finished {
    fn must_succeed(&self, label: &str) -> Result<()> {
        if !self.success {
            eprint!("{}", self.output);
            bail!("{label} failed; what it printed is above");
        }
        eprintln!("{label}  {}", seconds(self.took));
        Ok(())
    }
}

pub fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// A line on the terminal that shows that something still happens. Elsewhere it shows nothing.
struct Spinner<'a> {
    label: &'a str,
    started: Instant,
    visible: bool,
    drawn: Option<Instant>,
    peek: String,
}

impl<'a> Spinner<'a> {
    fn new(label: &'a str, started: Instant, echo: bool) -> Self {
        let visible = !echo && std::io::stderr().is_terminal();
        Self { label, started, visible, drawn: None, peek: String::new() }
    }

    fn draw(&mut self, line: &str) {
        if !line.trim().is_empty() {
            self.peek = line.trim().chars().filter(|it| !it.is_control()).take(PEEK).collect();
        }
        if self.visible && self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
            let elapsed = self.started.elapsed();
            let turn = ['|', '/', '-', '\\'][(elapsed.as_millis() / REDRAW.as_millis()) as usize % 4];
            // Without wrapping (mode 7) the line is cut at the terminal's edge, and one line stays one line.
            eprint!(
                "\r\x1b[2K\x1b[?7l{turn} {}  {} s  \x1b[2m{}\x1b[0m\x1b[?7h",
                self.label,
                elapsed.as_secs(),
                self.peek
            );
            self.drawn = Some(Instant::now());
            self.flush();
        }
    }

    fn clear(&mut self) {
        if self.drawn.is_some() {
            eprint!("\r\x1b[2K");
            self.flush();
        }
    }

    fn flush(&mut self) {
        // A terminal that has gone away ends the show, not the work.
        self.visible &= std::io::stderr().flush().is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_and_the_exit_code_are_kept() {
        let finished = watch("step", Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), false).unwrap();
        assert_eq!((finished.success, finished.output.as_str()), (false, "out\nerr\n"));
    }

    #[test]
    fn a_compilation_shows_what_the_compiler_says_and_not_its_progress() {
        for (line, progress) in [
            ("   Compiling anyhow v1.0.104", true),
            ("    Finished `release` profile [optimized] target(s) in 1.0s", true),
            ("warning: unused import", false),
            (" --> loadbalancer-ebpf/src/nat.rs:7:5", false),
            ("Compiling is what failed", false),
            ("    Finishedness", false),
            ("", false),
        ] {
            assert_eq!(is_progress(line), progress, "{line}");
        }
    }

    #[test]
    fn a_process_left_behind_does_not_hold_a_step_up() {
        let finished = watch("step", Command::new("sh").args(["-c", "sleep 30 & echo $!"]), false).unwrap();
        assert!(finished.success && finished.took < Duration::from_secs(20));
        // The shell's own: a small machine has no program of that name.
        let kill = format!("kill {}", finished.output.trim());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = watch("step", &mut Command::new("/nonexistent/program"), false).err().unwrap();
        assert_eq!(error.to_string(), "step: cannot run /nonexistent/program");
    }
}
