//! The configuration as a whole: its tables.

use std::net::SocketAddr;
use std::rc::Rc;

use super::channel::{self, ChannelKeys, MOST_CHANNELS};
use super::document::{Admin, Config, Quality, QueueLimits};
use super::gateway::{self, GatewayKeys};
use super::limits::{self, LimitsKeys};
use super::schema::table::{Keys, Table};
use super::schema::value::List;
use super::service::{self, ServiceKeys};
use super::standby::{self, PoolKeys};
use super::{admin, metrics, quality, queue, timeouts};
use model::time::Timeouts;

/// All that was read, with places.
#[derive(Clone, Debug, Default)]
pub(super) struct Root {
    pub gateway: GatewayKeys,
    pub limits: LimitsKeys,
    pub timeouts: Timeouts,
    admin: Admin,
    metrics: Option<SocketAddr>,
    pub channels: List<ChannelKeys>,
    pub standby: PoolKeys,
    quality: Quality,
    queue: QueueLimits,
    pub services: List<ServiceKeys>,
}

impl Root {
    fn channel_names(&self) -> Rc<[String]> {
        self.channels.all.iter().map(|channel| channel.name.value.clone()).collect()
    }

    pub fn document(self) -> Config {
        Config {
            gateway: self.gateway.document(),
            limits: self.limits.document(),
            timeouts: self.timeouts,
            admin: self.admin,
            metrics: self.metrics,
            channels: self.channels.all.into_iter().map(ChannelKeys::document).collect(),
            standby: self.standby.document(),
            quality: self.quality,
            queue: self.queue,
            services: self.services.all.into_iter().map(ServiceKeys::document).collect(),
        }
    }
}

pub(super) fn table() -> Table<Root> {
    Keys::new("the configuration", "", Root::default())
        .table("gateway", |it| &mut it.gateway, |_| gateway::table())
        .required("[gateway] with `interfaces = [\"eth0\"]`")
        .table("limits", |it| &mut it.limits, |_| limits::table())
        .table("timeouts", |it| &mut it.timeouts, |_| timeouts::table())
        .table("admin", |it| &mut it.admin, |_| admin::table())
        .table("metrics", |it| &mut it.metrics, |_| metrics::table())
        .tables("channel", |it| &mut it.channels, |_| channel::table())
        .most(MOST_CHANNELS, "channels", "give some servers to another gateway")
        .table("standby", |it| &mut it.standby, |it| standby::pool(it.channel_names()))
        .table("quality", |it| &mut it.quality, |_| quality::of_all())
        .table("queue", |it| &mut it.queue, |_| queue::of_all())
        .tables("service", |it| &mut it.services, |it| service::table(&it.quality.settings, it.channel_names()))
        .plain()
}
