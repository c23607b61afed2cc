//! The live table.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use loadbalancer::api::types::snapshot::{Server, Snapshot};
use loadbalancer_tests::traffic::load::LoadReport;

/// A terminal, on which the table is drawn in place; or a file, which gets a line now and then.
pub struct Screen {
    is_terminal: bool,
    drawn: Cell<usize>,
    told: Cell<Duration>,
}

/// On a file, how often.
const EVERY: Duration = Duration::from_secs(2);

impl Screen {
    pub fn new(is_terminal: bool) -> Self {
        Self { is_terminal, drawn: Cell::new(0), told: Cell::new(Duration::ZERO) }
    }

    pub fn line(&self, text: &str) {
        println!("{text}");
    }

    /// Removes the table.
    pub fn clear(&self) {
        if self.is_terminal && self.drawn.get() > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn.replace(0));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a table of what is going on")]
    pub fn draw(
        &self,
        title: &str,
        phase: &str,
        elapsed: Duration,
        total: Duration,
        before: &Snapshot,
        now: &Snapshot,
        report: &LoadReport,
    ) {
        let head = format!(
            "{title}  {} {:.0}/{:.0} s  {phase}  {} requests, {} errors",
            bar(elapsed, total),
            elapsed.as_secs_f64(),
            total.as_secs_f64(),
            report.ok,
            report.failed()
        );
        if !self.is_terminal {
            let last = self.told.get();
            if elapsed < last || elapsed - last >= EVERY {
                self.told.set(elapsed);
                println!("{head}");
            }
            return;
        }
        let mut text = head + "\n";
        text += &format!(
            "  {:<12} {:>6} {:>7} {:>7} {:>8} {:>10} {:>10} {:>12} {:>9}\n",
            "server", "weight", "share", "active", "new/s", "packets/s", "bytes/s", "health", "check"
        );
        let seconds = (now.taken_ms - before.taken_ms).max(1) as f64 / 1e3;
        let old: BTreeMap<&str, &Server> = servers(before).map(|server| (server.name.as_str(), server)).collect();
        for server in servers(now) {
            let rate = |read: fn(&Server) -> u64| {
                let before = old.get(server.name.as_str()).map_or(0, |old| read(old));
                read(server).saturating_sub(before) as f64 / seconds
            };
            text += &format!(
                "  {:<12} {:>6} {:>6.1}% {:>7} {:>8.0} {:>10.0} {:>10.0} {:>12} {:>9}\n",
                server.name,
                server.weight,
                server.share * 100.0,
                server.active,
                rate(|server| server.flows),
                rate(|server| server.packets + server.reply_packets),
                rate(|server| server.bytes + server.reply_bytes),
                server.state.label(),
                server.check_latency_us.map_or_else(|| "-".to_owned(), |us| format!("{:.2} ms", us as f64 / 1e3)),
            );
        }
        self.clear();
        print!("{text}");
        self.drawn.set(text.lines().count());
        if let Err(error) = std::io::stdout().flush() {
            eprintln!("lab: {error}");
        }
    }
}

fn servers(snapshot: &Snapshot) -> impl Iterator<Item = &Server> {
    snapshot.services.iter().flat_map(|service| &service.servers)
}

fn bar(elapsed: Duration, total: Duration) -> String {
    const WIDTH: usize = 20;
    let done = (elapsed.as_secs_f64() / total.as_secs_f64() * WIDTH as f64) as usize;
    let done = done.min(WIDTH);
    format!("[{}{}]", "#".repeat(done), ".".repeat(WIDTH - done))
}
