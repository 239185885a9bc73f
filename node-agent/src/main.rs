//! podlane-agent: keeps one node's pod routing as RoutingPolicies declare it.

use clap::Parser;
use podlane_agent::options::{Command, LogFormat, Options};
use podlane_agent::{agent, clean, kernel};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    match options.command {
        Some(Command::Clean) => clean::clean(&mut kernel::Kernel::default()),
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(agent::run(options.agent))
        }
    }
}
