//! `throughline network`.

use clap::Subcommand;
use throughline_wire::v1::{
    CreateNetworkRequest, DeleteNetworkRequest, GetNetworkRequest, ListNetworksRequest, ListNetworksResponse, Network,
};

use crate::{
    failure::Failure,
    output::Show,
    session::{PAGE_SIZE, Session, all_pages},
};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  throughline network create blue --vni 7001
  throughline network list";

/// Subcommands of `network`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a network
    #[command(after_help = "\
EXAMPLES:
  throughline network create blue --vni 7001
  throughline network create storage --vni 7002 --mtu 8950")]
    Create {
        /// Name, unique in the fabric: a-z, 0-9, '-' and '.', at most 63 characters
        name: String,
        /// VXLAN network identifier, 1 to 16777215, unique in the fabric
        #[arg(long, value_name = "N")]
        vni: u32,
        /// Largest payload of a guest's frame in bytes, 576 to 65485; 0: 1450, which fits an underlay of 1500
        #[arg(long, value_name = "N", default_value_t = 0)]
        mtu: u32,
    },
    /// Show one network
    #[command(after_help = "\
EXAMPLES:
  throughline network get blue
  throughline network get blue -o json")]
    Get {
        /// Its name
        name: String,
    },
    /// List all networks
    #[command(after_help = "\
EXAMPLES:
  throughline network list
  throughline network list -o json | jq -r '.networks[].name'")]
    List,
    /// Delete a network that no port is on
    #[command(after_help = "\
EXAMPLES:
  throughline network delete blue")]
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
            Self::Create { name, vni, mtu } => {
                let what = format!("create network {name}");
                let request = CreateNetworkRequest { network: Some(Network { name, vni, mtu }) };
                session.output.one(&session.answer(&what, fabric.create_network(request)).await?)
            }
            Self::Get { name } => {
                let what = format!("get network {name}");
                session.output.one(&session.answer(&what, fabric.get_network(GetNetworkRequest { name })).await?)
            }
            Self::List => {
                let networks = all_pages(async |page_token| {
                    let request = ListNetworksRequest { page_size: PAGE_SIZE, page_token };
                    let page = session.answer("list networks", fabric.list_networks(request)).await?;
                    Ok((page.networks, page.next_page_token))
                });
                let all = ListNetworksResponse { networks: networks.await?, next_page_token: String::new() };
                session.output.list(&all.networks, &all)
            }
            Self::Delete { name } => {
                let what = format!("delete network {name}");
                let done = format!("network {name} deleted");
                let response = session.answer(&what, fabric.delete_network(DeleteNetworkRequest { name })).await?;
                session.output.done(&done, &response)
            }
        }
    }
}

impl Show<3> for Network {
    const HEADING: [&'static str; 3] = ["NAME", "VNI", "MTU"];

    fn row(&self) -> [String; 3] {
        [self.name.clone(), self.vni.to_string(), self.mtu.to_string()]
    }

    fn properties(&self) -> Vec<(&'static str, String)> {
        vec![("name", self.name.clone()), ("vni", self.vni.to_string()), ("mtu", self.mtu.to_string())]
    }
}
