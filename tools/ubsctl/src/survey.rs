//! Everything that metad knows, asked once: what `status` and `doctor` judge by.

use crate::context::{Context, named};
use crate::failure::Failure;
use control::api::{
    ClusterView, Filter, HostView, MemberStatus, ResilverView, Resilvers, ServerView, StoreView,
    VolumeView,
};
use control::client::MetadError;
use std::time::{Duration, Instant};

/// A configured address and what the member there says of itself.
pub(crate) type Asked = (String, Result<MemberStatus, MetadError>);

/// The listings, as one leader gave them.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) cluster: ClusterView,
    pub(crate) servers: Vec<ServerView>,
    pub(crate) stores: Vec<StoreView>,
    pub(crate) hosts: Vec<HostView>,
    pub(crate) volumes: Vec<VolumeView>,
    pub(crate) resilvers: Resilvers,
}

impl Survey {
    pub(crate) async fn take(context: &Context) -> Result<Self, Failure> {
        let client = &context.client;
        Ok(Self {
            cluster: client.cluster().await?,
            servers: client.servers(named("")).await?.list,
            stores: client.stores(named("")).await?.list,
            hosts: client.hosts(named("")).await?.list,
            volumes: client.volumes(named("")).await?.list,
            resilvers: client.resilvers(named("")).await?,
        })
    }

    /// Running resilvers that do not get on within the time.
    pub(crate) async fn stuck_resilvers(
        &self,
        context: &Context,
        within: Duration,
    ) -> Result<Vec<ResilverView>, Failure> {
        let mut still = self.resilvers.running.clone();
        let deadline = Instant::now() + within;
        let mut version = self.resilvers.version;
        while !still.is_empty() {
            let filter = Filter {
                name: String::new(),
                version,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(seen) = tokio::time::timeout(left, context.client.resilvers(filter)).await
            else {
                break;
            };
            let seen = seen?;
            version = seen.version;
            still.retain(|r| seen.running.iter().any(|now| now.report == r.report));
        }
        Ok(still)
    }
}
