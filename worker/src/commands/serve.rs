//! `serve`: temporary until the engine lands.
use super::{CommandError, DeviceArgs};
use clap::Args;
/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
}
/// Runs the command.
pub fn run(_args: &ServeArgs) -> Result<(), CommandError> {
    Err(CommandError::Runtime("not yet".to_owned()))
}
