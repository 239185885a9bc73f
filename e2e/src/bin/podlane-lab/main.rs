//! `podlane-lab`: brings the lab up and down, tells Podlane's story in it, and is both ends of a stream of numbered packets.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the command line"
)]

mod commands;
mod demo;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use podlane_e2e::cluster::ProxyMode;
use podlane_e2e::lab::Extent;
use podlane_e2e::network::Naming;

/// Podlane's lab: a router, three nodes and their pods as network namespaces, with a real Kubernetes API server.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The lab's name; the namespaces of the default one have plain names, those of others its name in front.
    #[arg(long, global = true, default_value = Naming::PLAIN)]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings the lab up and leaves it up.
    Up {
        /// Pods on each node.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=200))]
        pods: u8,
        /// Without Podlane's operator and agents.
        #[arg(long)]
        no_podlane: bool,
        /// Without an API server too: nodes, router and pods only.
        #[arg(long)]
        network_only: bool,
        /// Stays until Ctrl-C, and takes the lab down then.
        #[arg(long)]
        foreground: bool,
    },
    /// Brings up a cluster with kubelets, with Podlane installed by its chart, until Ctrl-C.
    Cluster {
        /// How Services are carried out: nftables or iptables.
        #[arg(long, default_value_t, value_enum)]
        proxy_mode: ProxyMode,
        /// Without Podlane: its nodes have no pod network.
        #[arg(long)]
        no_podlane: bool,
    },
    /// Takes the lab down and looks whether anything is left, also after its process was killed.
    Down,
    /// Tells Podlane's story in a lab of its own, with real parts, and takes everything down again.
    Demo,
    /// Says what there is of the lab.
    Status,
    /// One end of a stream of numbered packets. It is told what to do on its standard input.
    #[command(subcommand)]
    Stream(StreamEnd),
}

#[derive(Debug, Subcommand)]
enum StreamEnd {
    /// Sends until a line comes on standard input, or its end; then says how many packets it has sent.
    Send {
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// Packets a second, at most 10,000.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// Bytes in each packet.
        #[arg(long, default_value_t = 64)]
        size: u16,
        /// Ends after so many packets.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Receives until `finish N` comes on standard input, N being how many packets were sent; then says what came.
    Receive {
        /// Where to listen; port 0 takes a free one. The first line of output says which.
        #[arg(long, default_value = "0.0.0.0:0")]
        bind: SocketAddr,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podlane-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let name = arguments.name.as_str();
    match &arguments.command {
        Command::Up {
            pods,
            no_podlane,
            network_only,
            foreground,
        } => {
            let extent = match (network_only, no_podlane) {
                (true, _) => Extent::Network,
                (false, true) => Extent::ControlPlane,
                (false, false) => Extent::Podlane,
            };
            commands::up(name, *pods, extent, *foreground)
        }
        Command::Cluster {
            proxy_mode,
            no_podlane,
        } => commands::cluster(name, *proxy_mode, !no_podlane),
        Command::Down => commands::down(name),
        Command::Demo => demo::run(name),
        Command::Status => commands::status(name),
        Command::Stream(StreamEnd::Send {
            to,
            rate,
            size,
            count,
        }) => commands::send(*to, *rate, *size, *count),
        Command::Stream(StreamEnd::Receive { bind }) => commands::receive(*bind),
    }
}
