//! nginx with ModSecurity and the OWASP Core Rule Set, as Debian has them.

use std::path::Path;

use tokio::process::Child;

use crate::{Error, namespaces};

/// Writes its configuration and starts it in the namespace of its container.
pub(crate) fn start(netns: &str, directory: &Path, backend: &str) -> Result<Child, Error> {
    let at = directory.display();
    std::fs::write(
        directory.join("modsecurity.conf"),
        format!(
            "Include /etc/nginx/modsecurity.conf\n\
             SecRuleEngine On\n\
             SecAuditLog {at}/audit.log\n\
             Include /etc/modsecurity/crs/crs-setup.conf\n\
             Include /usr/share/modsecurity-crs/rules/*.conf\n"
        ),
    )?;
    let configuration = directory.join("nginx.conf");
    // With a variable, nginx asks the network's resolver again when the answer is 5 s old.
    std::fs::write(
        &configuration,
        format!(
            "load_module modules/ngx_http_modsecurity_module.so; user root;\n\
             daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n\
             \taccess_log off; client_body_temp_path {at}; proxy_temp_path {at};\n\
             \tfastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};\n\
             \tresolver 169.254.53.53 ipv6=off;\n\
             \tserver {{\n\
             \t\tlisten 80;\n\
             \t\tmodsecurity on; modsecurity_rules_file {at}/modsecurity.conf;\n\
             \t\tset $backend {backend};\n\
             \t\tlocation / {{ proxy_pass http://$backend:3000; }}\n\
             \t}}\n\
             }}\n"
        ),
    )?;
    let configuration = configuration.display().to_string();
    namespaces::spawn(netns, &["nginx", "-p", "/usr/share/nginx", "-c", &configuration])
}
