//! podlane-agent: keeps one node's pod routing as RoutingPolicies declare it.

use clap::Parser;
use podlane_agent::options::{Command, LogFormat, Options};
use podlane_agent::{agent, clean, kernel};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // The client's own words on each failed request would repeat what is said here once. RUST_LOG can still ask for them by name:
    // a later directive on the same target wins.
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::new(format!("kube_client=off,kube_runtime=off,{asked}"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let cni = options.cni();
    match options.command {
        Some(Command::Clean) => clean::clean(&mut kernel::Kernel::default(), &options.bpffs, cni.as_ref()),
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(agent::run(options.agent, options.bpffs, cni))
        }
    }
}
