//! What is made of the command line itself: completions for shells, and man pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments as Whole, Failure};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate completions bash | sudo tee /usr/share/bash-completion/completions/lockgate > /dev/null\n  lockgate completions zsh > ~/.zfunc/_lockgate\n  lockgate completions fish > ~/.config/fish/completions/lockgate.fish"
)]
pub(super) struct Completions {
    /// For which shell
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate man /usr/share/man/man1")]
pub(super) struct Man {
    /// The folder to write them to: lockgate.1, lockgate-serve.1 and so on
    folder: PathBuf,
}

pub(super) fn completions(arguments: &Completions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Whole::command(), "lockgate", &mut text);
    say!("{}", String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

pub(super) fn man(arguments: &Man) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Whole::command(), folder).map_err(failed)?;
    say!("the pages are in {}: `man -l {}` shows the first", folder.display(), folder.join("lockgate.1").display());
    Ok(())
}
