//! `podlane-operator`: see the library of that name.

use clap::Parser;
use podlane_operator::options::Options;
use podlane_operator::run::{RunError, carry_out};
use std::io::Write as _;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    options.log();
    match carry_out(&options).await {
        Ok(said) => {
            said.into_iter().for_each(|said| tell(&said));
            ExitCode::SUCCESS
        }
        Err(RunError::Uninstall(said, _)) => {
            tell(&said);
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells a person something, on the standard output. Where nobody listens any more, nobody is to be told.
fn tell(said: &str) {
    let _ = writeln!(std::io::stdout(), "{said}");
}
