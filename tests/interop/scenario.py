"""Everything that an application does, by paho-mqtt, which reads a client's mqtt.env as written.

usage: scenario.py MQTT_ENV 3.1.1|5 PORT LEVEL
"""
import queue
import ssl
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 30
env = dict(line.rstrip("\n").split("=", 1) for line in open(sys.argv[1]))
protocol = mqtt.MQTTv5 if sys.argv[2] == "5" else mqtt.MQTTv311
port = int(sys.argv[3])
transport = "websockets" if sys.argv[5:] == ["ws"] else "tcp"
user = env.get("MQTT_USER", "device1")


class Client:
    def __init__(self, client_id, clean=True, will=None):
        self.messages = queue.Queue()
        self.connected = queue.Queue()
        self.subscribed = queue.Queue()
        self.gone = threading.Event()
        extra = {} if protocol == mqtt.MQTTv5 else {"clean_session": clean}
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, transport=transport, **extra)
        if "MQTT_USER" in env:
            self.mqtt.username_pw_set(env["MQTT_USER"], env["MQTT_PASSWORD"])
        if env["MQTT_USE_TLS"] == "true":
            context = ssl.create_default_context(cafile=env["MQTT_CA_CERTS"])
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            if "MQTT_CERTFILE" in env:
                context.load_cert_chain(env["MQTT_CERTFILE"], env["MQTT_KEYFILE"])
            self.mqtt.tls_set_context(context)
            assert env["MQTT_TLS_INSECURE"] == "false"
        if will:
            self.mqtt.will_set(*will)
        self.mqtt.on_connect = lambda c, u, flags, reason, props: self.connected.put((flags.session_present, reason))
        self.mqtt.on_message = lambda c, u, message: self.messages.put(message)
        self.mqtt.on_subscribe = lambda c, u, mid, reasons, props: self.subscribed.put(reasons)
        self.mqtt.on_disconnect = lambda *a: self.gone.set()
        if protocol == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 3600
            self.mqtt.connect(env["MQTT_HOST"], port, 60, clean_start=clean, properties=properties)
        else:
            self.mqtt.connect(env["MQTT_HOST"], port, 60)
        self.mqtt.loop_start()
        self.present, reason = self.connected.get(timeout=PATIENCE)
        assert not reason.is_failure, reason

    def subscribe(self, topic, qos):
        self.mqtt.subscribe(topic, qos)
        reasons = self.subscribed.get(timeout=PATIENCE)
        assert [reason.value for reason in reasons] == [qos], reasons

    def publish(self, topic, payload, qos=1, retain=False):
        self.mqtt.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE)

    def expect(self, topic, payload, qos=None, retain=None):
        message = self.messages.get(timeout=PATIENCE)
        assert message.topic == topic, (message.topic, topic)
        assert message.payload == payload, (topic, len(message.payload), len(payload))
        assert qos is None or message.qos == qos, (topic, message.qos, qos)
        assert retain is None or bool(message.retain) == retain, (topic, message.retain)

    def close(self):
        self.mqtt.disconnect()
        self.gone.wait(PATIENCE)
        self.mqtt.loop_stop()

    def die(self):
        """The connection goes without DISCONNECT."""
        self.mqtt.loop_stop()
        self.mqtt._sock_close()


name = f"py-{sys.argv[2]}-{sys.argv[4]}-{transport}"
base = f"{user}/{name}"
subscriber = Client(f"{name}-sub")
publisher = Client(f"{name}-pub")
for qos in (0, 1, 2):
    subscriber.subscribe(f"{base}/qos{qos}/#", qos)
for published in (0, 1, 2):
    for subscribed in (0, 1, 2):
        topic = f"{base}/qos{subscribed}/x"
        publisher.publish(topic, b"hello", published)
        subscriber.expect(topic, b"hello", min(published, subscribed), False)

# Over WebSocket paho loses a packet that its socket does not take at once.
large = bytes(range(256)) * ((5 if transport == "tcp" else 1) * 1024 * 4)
publisher.publish(f"{base}/qos1/large", large, 1)
subscriber.expect(f"{base}/qos1/large", large)
publisher.publish(f"{base}/qos2/large", large, 2)
subscriber.expect(f"{base}/qos2/large", large)

publisher.publish(f"{base}/retained", b"kept", 1, True)
late = Client(f"{name}-late")
late.subscribe(f"{base}/retained", 1)
late.expect(f"{base}/retained", b"kept", 1, True)
publisher.publish(f"{base}/retained", b"", 1, True)
late.expect(f"{base}/retained", b"")
late.close()

watcher = Client(f"{name}-watcher")
watcher.subscribe(f"{base}/will", 1)
mortal = Client(f"{name}-mortal", will=(f"{base}/will", b"gone", 1, False))
mortal.die()
watcher.expect(f"{base}/will", b"gone")
watcher.close()

sleeper = Client(f"{name}-sleeper", clean=False)
assert not sleeper.present
sleeper.subscribe(f"{base}/queue", 2)
sleeper.close()
# Order holds among messages of one QoS: a client gives QoS 2 on only when it is released.
for qos in (1, 2):
    for number in range(10):
        publisher.publish(f"{base}/queue", str(number).encode(), qos)
sleeper = Client(f"{name}-sleeper", clean=False)
assert sleeper.present
got = [sleeper.messages.get(timeout=PATIENCE) for _ in range(20)]
for qos in (1, 2):
    assert [message.payload.decode() for message in got if message.qos == qos] == [str(n) for n in range(10)], got
sleeper.close()
publisher.close()
subscriber.close()
print("ok")
