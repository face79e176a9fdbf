//! `throughline host`.

use clap::Subcommand;
use throughline_wire::v1::{
    CreateHostRequest, DeleteHostRequest, GetHostRequest, Host, ListHostsRequest, ListHostsResponse,
};

use crate::{
    failure::Failure,
    output::Show,
    session::{PAGE_SIZE, Session, all_pages},
    units,
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline host list
  throughline host get h1";

/// Subcommands of `host`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Announce a host before its agent connects
    #[command(after_help = "\
EXAMPLES:
  throughline host create h1")]
    Create {
        /// Name, unique in the fabric: a-z, 0-9, '-' and '.', at most 63 characters
        name: String,
    },
    /// Show one host
    #[command(after_help = "\
EXAMPLES:
  throughline host get h1
  throughline host get h1 -o json | jq .connected")]
    Get {
        /// Its name
        name: String,
    },
    /// List all hosts
    #[command(after_help = "\
EXAMPLES:
  throughline host list")]
    List,
    /// Forget a host without guests and endpoints, whose agent is not connected
    #[command(after_help = "\
EXAMPLES:
  throughline host delete h1")]
    Delete {
        /// Its name
        name: String,
    },
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stood in the way.
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut fabric = session.connect().await?;
        match self {
            Self::Create { name } => {
                let what = format!("create host {name}");
                session.output.one(&session.answer(&what, fabric.create_host(CreateHostRequest { name })).await?)
            }
            Self::Get { name } => {
                let what = format!("get host {name}");
                session.output.one(&session.answer(&what, fabric.get_host(GetHostRequest { name })).await?)
            }
            Self::List => {
                let hosts = all_pages(async |page_token| {
                    let request = ListHostsRequest { page_size: PAGE_SIZE, page_token };
                    let page = session.answer("list hosts", fabric.list_hosts(request)).await?;
                    Ok((page.hosts, page.next_page_token))
                });
                let all = ListHostsResponse { hosts: hosts.await?, next_page_token: String::new() };
                session.output.list(&all.hosts, &all)
            }
            Self::Delete { name } => {
                let what = format!("delete host {name}");
                let done = format!("host {name} deleted");
                let response = session.answer(&what, fabric.delete_host(DeleteHostRequest { name })).await?;
                session.output.done(&done, &response)
            }
        }
    }
}

fn connected(host: &Host) -> String {
    match &host.refusal {
        Some(refusal) => format!("refused ({})", refusal.reason),
        None => if host.connected { "yes" } else { "no" }.to_owned(),
    }
}

/// Memory promised and memory there, or that there is none for guests.
fn memory(host: &Host) -> String {
    if host.peer_only {
        return "runs no guests".to_owned();
    }
    let [used, all] = [host.memory_used_kib, host.memory_kib].map(|kib| units::bytes(kib.saturating_mul(1024)));
    format!("{used} of {all}")
}

impl Show<6> for Host {
    const HEADING: [&'static str; 6] = ["NAME", "CONNECTED", "VTEP", "MEMORY USED", "ACCELERATOR", "AGENT"];

    fn row(&self) -> [String; 6] {
        [
            self.name.clone(),
            connected(self),
            self.vtep.clone(),
            memory(self),
            self.accelerator.clone(),
            self.agent_version.clone(),
        ]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("connected", connected(self)),
            ("refusal", self.refusal.as_ref().map(|refusal| refusal.message.clone()).unwrap_or_default()),
            ("vtep", self.vtep.clone()),
            ("peer endpoint", self.peer_endpoint.clone()),
            ("memory used", memory(self)),
            ("accelerator", self.accelerator.clone()),
            ("agent", self.agent_version.clone()),
        ]
    }
}
