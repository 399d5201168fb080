//! `lockgate up`: from nothing to a running secure broker.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, SiteArguments, init, serve};

#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  lockgate up --dir /tmp/try --plain-port 11883 --tls-port 18883")]
pub(super) struct Arguments {
    /// The site's folder
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
    /// Port of plain MQTT, where a new site is made
    #[arg(long, value_name = "PORT")]
    plain_port: Option<u16>,
    /// Port of MQTT over TLS, where a new site is made
    #[arg(long, value_name = "PORT")]
    tls_port: Option<u16>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let folder = if arguments.dir == Path::new(".") { PathBuf::new() } else { arguments.dir.clone() };
    let configuration = folder.join("config/lockgate.yaml");
    let config_folder = folder.join("config");
    if !configuration.exists() || crate::pki::is_half_made(&config_folder) {
        let report = init::for_up(&arguments.dir, arguments.plain_port, arguments.tls_port)?;
        say!("{}{}", report.table(), report.commands(""));
        say!("\nThe broker runs until you press Ctrl-C. Next time `lockgate serve` (or `up`) starts it again.\n");
    } else {
        say!("{} exists: starting its broker.", configuration.display());
    }
    serve::run(serve::Arguments::of(SiteArguments { config: Some(configuration), dir: None }))
}
