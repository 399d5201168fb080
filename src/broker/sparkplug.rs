//! What a Sparkplug Aware server keeps (Sparkplug 3.0.0 section 10.1.4): the birth certificates of edge nodes and of
//! their devices, retained where a host application finds them whenever it comes.

/// Where the message of a topic is kept too; `None`: it is no birth certificate.
pub(super) fn birth_certificate(topic: &str) -> Option<String> {
    let levels: Vec<&str> = topic.split('/').collect();
    match levels[..] {
        ["spBv1.0", _, "NBIRTH", _] | ["spBv1.0", _, "DBIRTH", _, _] => {
            Some(format!("$sparkplug/certificates/{topic}"))
        }
        _ => None,
    }
}
