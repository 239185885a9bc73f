//! Those who speak to the API server by a client certificate.

/// Who speaks to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The cluster's administrator.
    Admin,
    /// Podlane's operator.
    Operator,
    /// Podlane's agent on the node of this name.
    Agent(String),
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kube-proxy, of every node the same.
    Proxy,
    /// The kubelet of the node of this name.
    Kubelet(String),
}

impl Identity {
    /// The file, user and group that stand for it. Those of Kubernetes' own components are what its built-in roles are bound to.
    pub(super) fn names(&self) -> (String, String, &'static str) {
        match self {
            Self::Admin => ("admin".into(), "kubernetes-admin".into(), "system:masters"),
            Self::Operator => ("operator".into(), "podlane-operator".into(), "podlane"),
            Self::Agent(node) => (
                format!("agent-{node}"),
                format!("podlane-agent:{node}"),
                "podlane:agents",
            ),
            Self::ControllerManager => (
                "kube-controller-manager".into(),
                "system:kube-controller-manager".into(),
                "podlane:lab",
            ),
            Self::Scheduler => (
                "kube-scheduler".into(),
                "system:kube-scheduler".into(),
                "podlane:lab",
            ),
            Self::Proxy => ("kube-proxy".into(), "system:kube-proxy".into(), "podlane:lab"),
            Self::Kubelet(node) => (
                format!("kubelet-{node}"),
                format!("system:node:{node}"),
                "system:nodes",
            ),
        }
    }
}
