//! The command line as a whole.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser};
use tonic::transport::Uri;

use crate::{
    commands::Command,
    exit,
    output::Format,
    session::{Session, controller, default_tls},
    units,
};

const EXAMPLES: &str = "\
EXAMPLES:
  throughline network create blue --vni 7001
  throughline guest create web-1 --host h1 --network blue --ip 10.0.0.10 \\
    --memory 1G --kernel /boot/vmlinuz
  throughline migrate web-1 --to h2
  throughline migration list --output json";

const ERRORS: &str = "\
ERRORS go to stderr. With --output json each is one object, whose reason is stable:
  {\"error\": {\"what\", \"message\", \"reason\", \"code\", \"field\", \"next\", \"exit_code\"}}
What is only worth knowing is {\"notice\"}. Usage errors (2) are always text.";

/// Move running guests between hosts without their network noticing.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, after_help = format!("{EXAMPLES}\n\n{}\n\n{ERRORS}", exit::HELP))]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every subcommand takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Address of the controller [default: https://127.0.0.1:7700]
    #[arg(long, global = true, env = "THROUGHLINE_CONTROLLER", value_name = "URL", value_parser = controller)]
    controller: Option<Uri>,
    /// Directory of your ca.pem, cert.pem, key.pem and crl.pem [default: ~/.config/throughline]
    #[arg(long, global = true, env = "THROUGHLINE_TLS", value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Speak plaintext, with a controller on a loopback address that was started with --insecure too
    #[arg(long, global = true)]
    insecure: bool,
    /// Form of the output; JSON is the protocol's own messages, streams are one object a line
    #[arg(short, long, global = true, value_enum, value_name = "FORM", default_value = "table")]
    output: Format,
    /// Time for each call to the controller, in seconds or with a unit (500ms, 1m)
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = units::duration)]
    timeout: Duration,
}

impl From<Global> for Session {
    fn from(global: Global) -> Self {
        let Global { controller, tls, insecure, output, timeout } = global;
        let tls = tls.or_else(default_tls);
        Self {
            controller: controller.unwrap_or_else(|| Self::default_controller(insecure)),
            tls,
            insecure,
            timeout,
            output,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    /// Every command of the tree below `command`, with the words that lead to it.
    fn commands(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
        let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
        let below = command.get_subcommands().flat_map(|below| commands(below, &path)).collect::<Vec<_>>();
        std::iter::once((path, command.clone())).chain(below).collect()
    }

    /// The example lines of a help text, without what a shell would do with the output.
    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let section = help.split_once("EXAMPLES:\n").map(|(_, section)| section).unwrap_or_default();
        let section = section.replace("\\\n", "");
        let lines = section.lines().map_while(|line| line.strip_prefix("  "));
        let commands = lines.map(|line| [" | ", " > "].iter().fold(line, |line, cut| line.split(cut).next().unwrap()));
        commands.map(str::to_owned).collect()
    }

    /// The words of a command line; single quotes keep words together.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 0 {
                words.extend(part.split_whitespace().map(str::to_owned));
            } else {
                words.push(part.to_owned());
            }
        }
        words
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_every_example_parses() {
        for (path, command) in commands(&Cli::command(), "") {
            let examples = examples(&command);
            assert!(!examples.is_empty(), "`{path} --help` has no examples");
            for example in examples {
                assert!(example.starts_with(&path), "`{path} --help` shows something else: {example}");
                if let Err(error) = Cli::try_parse_from(words(&example)) {
                    panic!("the example {example:?} of `{path} --help` does not parse: {error}");
                }
            }
        }
    }

    #[test]
    fn help_fits_the_widest_terminal_clap_wraps_for() {
        for (path, command) in commands(&Cli::command(), "") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "`{path} --help` would wrap: {line}");
            }
        }
    }

    #[test]
    fn what_a_hint_tells_to_type_parses() {
        let session = Session::from(
            Cli::parse_from(["throughline", "--controller=https://c:1", "--tls=/t", "host", "list"]).global,
        );
        for hint in
            ["migration watch m1", "migration cancel m1", "migration list --guest g", "guest get g", "guest delete g"]
        {
            let line = session.hint(hint);
            let again = Session::from(Cli::try_parse_from(words(&line)).expect(&line).global);
            assert_eq!((&again.controller, &again.tls), (&session.controller, &session.tls), "{line}");
        }
    }

    #[test]
    fn wrong_quantities_name_their_flag() {
        let migrate = |flag, value| vec!["throughline", "migrate", "g", flag, value];
        let lines = [
            migrate("--bandwidth", "10Gb"),
            migrate("--deadline", "never"),
            migrate("--longest-pause", "0"),
            migrate("--timeout", "0"),
            migrate("--controller", "ftp://x"),
            vec!["throughline", "network", "create", "n", "--vni", "99999999999"],
            vec!["throughline", "guest", "create", "g", "--memory", "1e9"],
            vec!["throughline", "guest", "create", "g", "--port", "ip=10.0.0.1"],
        ];
        for line in lines {
            let error = Cli::try_parse_from(&line).expect_err(&line.join(" "));
            assert!(error.to_string().contains(line[line.len() - 2]), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn a_guest_needs_a_card() {
        let common = "throughline guest create g --host h --memory 64 --kernel k";
        for wrong in ["", " --ip 10.0.0.1", " --network blue", " --mac 02:00:00:00:00:01 --port network=b,ip=10.0.0.1"]
        {
            Cli::try_parse_from(words(&format!("{common}{wrong}"))).expect_err(wrong);
        }
        for good in [" --network blue --ip 10.0.0.1", " --network blue --ip 10.0.0.1 --port network=b,ip=10.0.0.1"] {
            Cli::try_parse_from(words(&format!("{common}{good}"))).expect(good);
        }
    }
}
