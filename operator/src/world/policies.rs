//! RoutingPolicies, each with the last version of it that makes sense.

use super::{Change, Identity, Source, World};
use crate::seen::Seen;
use kube::ResourceExt;
use podlane_crds::{ConditionType, RoutingPolicy, RoutingPolicyStatus, policy_from_api};
use podlane_plan::policy::Policy;
use serde::Deserialize;

/// The reason of a policy's condition Ready while the rollout of agents has stopped.
pub const ROLLOUT_STOPPED: &str = "RolloutStopped";

/// Why a policy's present version is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In a word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// A RoutingPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRecord {
    /// Which version.
    pub identity: Identity,
    /// What is in force of it: its last version that makes sense. None: no such version has been seen by this process, and the
    /// nodes that are told of the policy keep what they were told.
    pub in_force: Option<Policy>,
    /// Why that is not the present version.
    pub fault: Option<Fault>,
    /// Its status, as far as it can be read.
    pub status: RoutingPolicyStatus,
}

impl PolicyRecord {
    /// Whether its status says that the rollout of agents has stopped.
    pub fn says_that_rollout_has_stopped(&self) -> bool {
        let ready = ConditionType::Ready.to_string();
        let mut conditions = self.status.conditions.iter();
        conditions.any(|condition| condition.type_ == ready && condition.reason == ROLLOUT_STOPPED)
    }
}

impl World {
    /// A RoutingPolicy was seen.
    pub fn see_policy(&mut self, seen: Seen<RoutingPolicy>, source: Source) -> Change {
        let name = seen.name_any();
        let identity = Identity::of(&seen.metadata);
        let known = self.policies.get(&name);
        if identity.is_outdated(known.map(|known| &known.identity), source) {
            return Change::default();
        }
        let before = known.filter(|known| known.identity.uid == identity.uid);
        let last_good = || before.and_then(|before| before.in_force.clone());
        let mut unreadable = None;
        let (in_force, fault, status) = match seen.decoded {
            Ok(policy) => {
                let (in_force, fault) = match policy_from_api(&policy) {
                    Ok(in_force) => (Some(in_force), None),
                    Err(invalid) => (
                        last_good(),
                        Some(Fault {
                            reason: "Invalid",
                            message: format!("cannot be applied: {invalid}"),
                        }),
                    ),
                };
                (in_force, fault, policy.status.unwrap_or_default())
            }
            Err(why) => {
                let fault = Fault {
                    reason: "Unreadable",
                    message: format!("cannot be read: {}", why.why),
                };
                unreadable = Some(why);
                let status = RoutingPolicyStatus::deserialize(&seen.status).ok();
                (last_good(), Some(fault), status.unwrap_or_default())
            }
        };
        let record = PolicyRecord {
            identity,
            in_force,
            fault,
            status,
        };
        let matters = known.is_none_or(|known| {
            let identity = Identity {
                resource_version: record.identity.resource_version,
                ..known.identity.clone()
            };
            record.identity != identity
                || (&record.in_force, &record.fault, &record.status)
                    != (&known.in_force, &known.fault, &known.status)
        });
        self.policies.insert(name, record);
        Change { matters, unreadable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn see(
        world: &mut World,
        uid: &str,
        generation: i64,
        mode: serde_json::Value,
        cidr: &str,
    ) -> PolicyRecord {
        let seen = serde_json::from_value(json!({
            "metadata": {"name": "default", "uid": uid, "generation": generation, "resourceVersion": generation.to_string()},
            "spec": {"routingMode": mode, "nativeRoutingCIDRs": [cidr]},
        }))
        .expect("metadata");
        world.see_policy(seen, Source::Change);
        world.policies["default"].clone()
    }

    #[test]
    fn the_last_version_that_makes_sense_stays_in_force() {
        let mut world = World::default();
        let good = see(&mut world, "u", 1, json!("native"), "172.20.0.0/16");
        assert!(good.in_force.is_some() && good.fault.is_none());
        for (generation, mode, cidr, reason) in [
            (2, json!(7), "172.20.0.0/16", "Unreadable"),
            (3, json!("native"), "172.20", "Invalid"),
        ] {
            let record = see(&mut world, "u", generation, mode, cidr);
            assert_eq!(record.in_force, good.in_force);
            assert_eq!(record.fault.map(|fault| fault.reason), Some(reason));
        }
        // Another object of that name inherits nothing.
        assert_eq!(see(&mut world, "v", 4, json!(7), "").in_force, None);
        assert!(
            see(&mut world, "v", 5, json!("tunnel"), "172.20.0.0/16")
                .fault
                .is_none()
        );
    }
}
