"""etcd's services as esp answers them."""
