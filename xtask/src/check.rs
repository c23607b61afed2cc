//! Format, lints and docs.

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{build, setup, step, toolchain};

pub fn run(workspace: &Workspace) -> Result<()> {
    setup::run(workspace)?;
    step::run("format", workspace.cargo().args(["fmt", "--all", "--check"]))?;
    // The controller embeds the objects, so they come first.
    build::objects(workspace)?;
    step::run(
        "lints, this machine's side",
        workspace.cargo().args([
            "clippy",
            "--workspace",
            "--exclude",
            "loadbalancer-ebpf",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    let driver = toolchain::lint_driver().context("there is no clippy for the XDP programs; `cargo xtask setup`")?;
    step::run(
        "lints, the XDP programs",
        build::bpf_cargo(workspace, "check")?
            .env("RUSTC_WORKSPACE_WRAPPER", driver)
            .env("CARGO_TARGET_DIR", workspace.target.join("ebpf-lint"))
            .env("CLIPPY_ARGS", "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__"),
    )?;
    step::run(
        "docs",
        workspace.cargo().env("RUSTDOCFLAGS", "--deny warnings").args([
            "doc",
            "--workspace",
            "--exclude",
            "loadbalancer-ebpf",
            "--no-deps",
            "--document-private-items",
        ]),
    )
}
