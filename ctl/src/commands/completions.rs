//! `throughline completions`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{cli::Cli, failure::Failure, output};

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES:
  throughline completions bash > /etc/bash_completion.d/throughline
  throughline completions zsh > /usr/local/share/zsh/site-functions/_throughline
  throughline completions fish > ~/.config/fish/completions/throughline.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    ///
    /// # Errors
    /// stdout is closed.
    pub(crate) fn run(self) -> Result<(), Failure> {
        // Through a buffer: the generator panics when a write fails.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "throughline", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
