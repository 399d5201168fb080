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
    /// Another name or address that clients dial, where a new site is made (repeatable)
    #[arg(long, value_name = "NAME|IP", env = "LOCKGATE_SAN", value_delimiter = ',')]
    san: Vec<String>,
    /// Port of MQTT over TLS, where a new site is made
    #[arg(long, value_name = "PORT")]
    tls_port: Option<u16>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let folder = if arguments.dir == Path::new(".") { PathBuf::new() } else { arguments.dir.clone() };
    let configuration = folder.join("config/lockgate.yaml");
    let config_folder = folder.join("config");
    if !configuration.exists() || crate::pki::is_half_made(&config_folder) {
        // Before anything is made: a site on taken ports would only have to be edited.
        for (flag, port) in
            [("--plain-port", arguments.plain_port.unwrap_or(1883)), ("--tls-port", arguments.tls_port.unwrap_or(8883))]
        {
            if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port)) {
                return Err(Failure::new(format!(
                    "port {port} cannot be had: {error}; choose another with {flag} PORT"
                )));
            }
        }
        let report = init::for_up(&arguments.dir, arguments.plain_port, arguments.tls_port, arguments.san)?;
        say!("{}{}", report.table(), report.commands(""));
        say!("\nThe broker runs until you press Ctrl-C. Next time `lockgate serve` (or `up`) starts it again.\n");
    } else {
        if arguments.plain_port.is_some() || arguments.tls_port.is_some() {
            return Err(Failure::configuration(format!(
                "{} exists: ports are chosen where a site is made; edit `port:` in it, then run `lockgate up`",
                configuration.display()
            )));
        }
        if let Some(report) = init::existing(&arguments.dir)? {
            say!("{}", report.commands(""));
        }
        say!("{} exists: starting its broker.", configuration.display());
    }
    serve::run(serve::Arguments::of(SiteArguments { config: Some(configuration), dir: None }))
}
