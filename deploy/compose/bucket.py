"""Create a bucket if it does not exist: `python bucket.py NAME`."""

import sys

import boto3

client = boto3.client("s3")
if sys.argv[1] not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
    client.create_bucket(Bucket=sys.argv[1])
