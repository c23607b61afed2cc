use loadbalancer::dataplane::kernel::{Kernel, Sizes};
fn main() {
    match Kernel::load(Sizes { services: 8, backends: 64, rings: 8, flows: 4096, nat_flows: 4096, vips: 64 }, None) {
        Ok(_) => { println!("loaded"); let _keep = std::process::Command::new("sh").args(["-c","bpftool prog show | grep -A4 xdp; bpftool -j prog show | tr , '\n' | grep -E 'name|verified'"]).status(); }
        Err(e) => { let t = loadbalancer::dataplane::kernel::chain(&e); std::fs::write("/tmp/vlog", &t).expect("tmp"); println!("{}\n...\n{}", &t[..t.len().min(300)], &t[t.len().saturating_sub(4000)..]) },
    }
}
