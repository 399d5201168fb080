"""Connects by the variables of the environment, subscribes and publishes five messages, and prints what a person would
see. It goes on as a good client does: connects again, and sends what was not acknowledged."""

import os
import ssl
import sys
import threading
import time

import paho.mqtt.client as mqtt

SECONDS = float(sys.argv[1])
started = time.monotonic()
acknowledged, published, done = set(), [], threading.Event()


def say(*words):
    print(*words, flush=True)


def on_connect(client, userdata, flags, reason, properties):
    say("CONNACK", reason, "after %.1f s" % (time.monotonic() - started))
    if reason.is_failure:
        if str(reason) in ("Not authorized", "Bad user name or password"):
            client.disconnect()
            done.set()
        return
    if os.environ["MQTT_USE_TLS"] == "true":
        say("speaks", client.socket().version())
    client.subscribe("here/#", 1)


def on_subscribe(client, userdata, mid, reasons, properties):
    say("SUBACK", *reasons)
    if not published:
        for number in range(5):
            published.append(client.publish("here/%d" % number, "m%d" % number, qos=1))


def on_publish(client, userdata, mid, reason, properties):
    say("PUBACK", reason)
    acknowledged.add(mid)
    if len(acknowledged) == 5:
        say("all acknowledged")
        done.set()


def on_message(client, userdata, message):
    say("message", message.payload.decode(), "DUP" if message.dup else "")


def on_disconnect(client, userdata, flags, reason, properties):
    say("disconnected:", reason)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, client_id="paho")
client.on_connect, client.on_subscribe, client.on_publish = on_connect, on_subscribe, on_publish
client.on_message, client.on_disconnect = on_message, on_disconnect
client.reconnect_delay_set(min_delay=1, max_delay=2)
if os.environ["MQTT_USE_TLS"] == "true":
    client.tls_set(os.environ["MQTT_CA_CERTS"], os.environ.get("MQTT_CERTFILE"), os.environ.get("MQTT_KEYFILE"))
if "MQTT_USER" in os.environ:
    client.username_pw_set(os.environ["MQTT_USER"], os.environ["MQTT_PASSWORD"])
properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
properties.SessionExpiryInterval = 60
try:
    client.connect(
        os.environ["MQTT_HOST"], int(os.environ["MQTT_PORT"]), clean_start=False, properties=properties
    )
except (ssl.SSLError, OSError) as error:
    say("cannot connect:", error)
    sys.exit(1)
client.loop_start()
done.wait(SECONDS)
time.sleep(0.3)
say("%d of 5 acknowledged" % len(acknowledged))
# Not loop_stop(): it waits for what never comes.
os._exit(0)
